"""Published tokenizer folders load as they are, to the ids and texts of the library they were made for."""

from pathlib import Path

import pytest
import tokenizers

from cutaway.errors import UserError
from cutaway.tokenizer import Tokenizer, pairs
from tests import chat_cases, inputs
from tests.published import tokenizer_folders as published

REFUSED = {  # and why, which is a reason of their own
    "clip": "end_of_word_suffix '</w>' is not supported",
    "internlm2": r"the added token '<\|plugin\|>' has the id \d+, which is '\[UNUSED_TOKEN_141\]'",
}

# For tokenizers a control token that is found in normalised text decodes to that, and is then none to skip.
KEEPS = ("llama-2",)


def test_there_are_enough_and_nearly_all_load() -> None:
    assert len(published.NAMES) >= 40
    assert REFUSED.keys() <= set(published.NAMES)
    assert len(REFUSED) / len(published.NAMES) < 0.05
    for name in published.NAMES:
        source = published.entry(name)["source"]
        assert ("repository" in source and len(source["commit"]) == 40) or (
            "package" in source and source["version"]
        )


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_that_does_not_load_says_why(name: str, tmp_path: Path) -> None:
    published.written(name, tmp_path)
    with pytest.raises(UserError, match=REFUSED[name]):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", [name for name in published.NAMES if name not in REFUSED])
def test_a_published_folder_is_its_librarys(name: str, tmp_path: Path) -> None:
    folder = published.written(name, tmp_path)
    tok = Tokenizer.load(tmp_path)
    assert {token for token in folder.added if token not in tok.added} == set()
    template = pairs.read_pair_template(tmp_path, tok) if folder.pair else None
    whole = tmp_path / "again" / "tokenizer.json"
    try:
        whole.parent.mkdir()
        again = tokenizers.Tokenizer.from_file(str(tok.save(whole)))
    except UserError:
        again = None
    control = set(tok.special.values()) - {tok.unknown}
    texts = published.texts(folder.added)
    for text, other in zip(texts, reversed(texts), strict=True):
        ids = tok.encode(text, special="allow")
        assert ids == folder.encode(text, False), text
        around = tok.encode(text, special="allow", add_special=True)
        assert around == folder.encode(text, True), text
        for skip in (False, True) if name not in KEEPS else (False,):
            assert tok.decode(around, skip_special=skip) == folder.decode(around, skip), (text, skip)
        assert not set(tok.encode(text)) & control, text
        if template is not None and folder.pair is not None:
            both = template.joined(ids, tok.encode(other, special="allow"))[0]
            assert both == folder.pair(text, other), (text, other)
        if again is not None:
            assert again.encode(text, add_special_tokens=False).ids == ids, text


SHAPES = ["ask", "six", "tools", "two calls", "no prompt", "developer", "thinking", "parts"]


def test_published_chat_templates_render_as_transformers_has_them(tmp_path: Path) -> None:
    """One shape of each here, another for the next one; scripts/check/published_tokenizers.py takes all."""
    templates = published.templates()
    assert len(templates) >= 40
    tokenizer, peer = chat_cases.pair(
        inputs.path("smollm2"), tmp_path, chat_cases.markers(list(templates.values()))
    )
    shapes = chat_cases.benign()
    outcomes: dict[str, list[str]] = {}
    for turn, (title, template) in enumerate(templates.items()):
        case = SHAPES[turn % len(SHAPES)]
        outcome = chat_cases.compare_benign(tokenizer, peer, template, shapes[case])
        outcomes.setdefault(outcome, []).append(f"{title}: {case}")
    assert len(outcomes.pop("same")) > 30
    outcomes.pop("neither renders", [])
    assert outcomes == {}
