"""Hostile words forge no control token and lose none in any of the 70 templates; hostile templates are
stopped.

A few conversations for each template here; scripts/check/chat_templates.py takes them all.
"""

import sys
from pathlib import Path

import pytest

from cutaway import Tokenizer
from cutaway.errors import UserError
from cutaway.helper import Bounds, Helper
from cutaway.tokenizer import chat
from cutaway.tokenizer.chat.sandbox import helper
from tests import chat_cases, inputs

TAKEN = 4  # hostile conversations of each template
LONG = {"a long template", "many constants"}


def test_words_forge_no_token_and_lose_none(tmp_path) -> None:
    templates = chat_cases.templates()
    extra = chat_cases.markers(list(templates.values()))
    tokenizer = chat_cases.augmented(inputs.path("smollm2"), tmp_path, extra)
    fooled = held = refused = 0
    for turn, (title, template) in enumerate(templates.items()):
        control = chat_cases.control_ids(tokenizer, template, extra)
        cases = list(chat_cases.hostile(list(chat_cases.markers([template])) or list(tokenizer.special)[:4]))
        for name, bad, harmless in cases[turn % 5 :: len(cases) // TAKEN]:
            truth = chat_cases.ours(tokenizer, template, harmless, chat.text)
            ids = chat_cases.ours(tokenizer, template, bad)
            if isinstance(ids, UserError) or isinstance(truth, UserError):
                refused += 1
                continue
            naive = chat_cases.ours(tokenizer, template, bad, chat.text).text
            wanted = [id for id in tokenizer.encode(truth.text, special="allow") if id in control]
            assert [id for id in ids if id in control] == wanted, (title, name)
            held += 1
            fooled += [id for id in tokenizer.encode(naive, special="allow") if id in control] != wanted
    assert held > 200 and fooled > 50 and refused < 100


@pytest.mark.parametrize("name", sorted(set(chat_cases.ATTACKS) - LONG)[::3])
def test_a_template_that_takes_too_much_is_stopped(name: str) -> None:
    with pytest.raises(
        UserError, match=r"stopped|not allowed here|too deeply|failed on this conversation|takes too"
    ):
        chat.text([chat_cases.user()], chat_cases.ATTACKS[name])


@pytest.mark.parametrize("name", sorted(LONG))
def test_a_template_too_long_is_refused_before_it_runs(name: str) -> None:
    with pytest.raises(UserError, match="characters"):
        chat.text([chat_cases.user()], chat_cases.ATTACKS[name] * 3)


def test_limits_grow_with_the_conversation() -> None:
    template = chat_cases.templates()["Qwen-Qwen3-0.6B"]
    long = [chat_cases.user("word " * 200_000)]
    assert len(chat.text(long, template).text) > 1_000_000
    many = [message for i in range(1_000) for message in (chat_cases.user(f"{i}"), chat_cases.assistant())]
    assert chat.text([*many, chat_cases.user()], template).text.count("<|im_end|>") == 2_001


def test_what_a_template_did_is_gone_for_the_next() -> None:
    with pytest.raises(UserError):
        chat.text([chat_cases.user()], chat_cases.ATTACKS["center"])
    assert chat.text([chat_cases.user("Hi")], "{{ messages[0].content }}").text == "Hi"
    assert helper.process is not None and helper.process.poll() is None


@pytest.mark.skipif(sys.platform != "linux", reason="macOS ignores the limit")
def test_memory_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "def answer(request): return {'size': len(bytearray(request['size']))}"
    (tmp_path / "greedy.py").write_text(f"def load(): pass\n{answer}\n")
    monkeypatch.syspath_prepend(tmp_path)
    greedy = Helper("greedy", "the request", Bounds(5.0, 64 << 20), 30.0)
    assert greedy.ask({"size": 1 << 20}) == {"size": 1 << 20}
    with pytest.raises(UserError, match="too much memory"):
        greedy.ask({"size": 512 << 20})
    greedy.close()


def test_a_tokenizer_that_makes_control_tokens_of_text_is_refused() -> None:
    class Careless(Tokenizer):
        def encode_parts(self, text: str, control, never=frozenset()) -> list[int]:
            return self.encode(text, special="allow")

    careless = Careless(Tokenizer.load(inputs.path("smollm2")).spec)
    with pytest.raises(UserError, match="makes a control token from plain text"):
        chat.render([chat_cases.user("<|im_end|>")], "{{ messages[0].content }}", tokenizer=careless)
