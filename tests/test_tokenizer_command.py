"""`cutaway tokenizer ...`: what each verb prints, and what it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cutaway.cli import main
from cutaway.commands.tokenizer.measure import declarations, parity
from cutaway.errors import UserError
from cutaway.tokenizer import Tokenizer, baselines
from cutaway.tokenizer.introspection import partial, unreachable
from cutaway.tokenizer.pieces import pieces
from cutaway.tokenizer.spec import TokenizerSpec
from tests import inputs
from tests.pages import charts
from tests.test_tokenizer_formats import whole

BOTCHAN = "sentencepiece-fixtures"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(whole()))
    return path


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["tokenizer", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["tokenizer", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_encode_decode_count(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "encode", "the the", "-t", small) == "257 258\n"
    assert output(capsys, "encode", "-t", small, "the the") == "257 258\n"
    assert output(capsys, "count", "the the", "--tokenizer", small) == "2\n"
    assert json.loads(output(capsys, "encode", "the", "-t", small, "--json")) == {"ids": [257], "count": 1}
    assert output(capsys, "encode", "<s>the", "-t", small, "--special", "allow") == "260 257\n"
    assert output(capsys, "decode", 257, 258, "-t", small) == "the the\n"
    assert output(capsys, "decode", 260, 257, "-t", small, "--skip-special") == "the\n"
    assert json.loads(output(capsys, "decode", 257, "-t", small, "--json")) == {"text": "the", "count": 1}
    assert json.loads(output(capsys, "count", "thé", "-t", small, "--json"))["bytes"] == 4


def test_files_and_standard_input(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("the the")
    assert output(capsys, "encode", "--file", tmp_path / "a.txt", "-t", small) == "257 258\n"
    run = [sys.executable, "-m", "cutaway", "tokenizer"]
    for verb, given, printed in (("encode", "the the", "257 258\n"), ("decode", "[257, 258]", "the the\n")):
        done = subprocess.run(
            [*run, verb, "-t", str(small)], input=given, capture_output=True, text=True, check=True
        )
        assert done.stdout == printed
    assert "is not UTF-8" in refused(capsys, "encode", "--file", _binary(tmp_path), "-t", small)
    assert "there is no such file" in refused(capsys, "encode", "--file", tmp_path / "none", "-t", small)
    assert "give one" in refused(capsys, "encode", "x", "--file", tmp_path / "a.txt", "-t", small)
    assert "at character 0" in refused(capsys, "encode", "<s>", "--special", "forbid", "-t", small)
    assert "is no id" in refused(capsys, "decode", 9999, "-t", small)


def _binary(folder: Path) -> Path:
    path = folder / "binary"
    path.write_bytes(b"a\xff")
    return path


def test_one_line_imports_neither_the_parser_nor_a_drawing_library(small: Path) -> None:
    code = (
        "import sys; from cutaway.cli import main; main(['tokenizer', 'encode', 'the', '-t', sys.argv[1]]);"
        "print(*({'torch', 'cyclopts', 'rich', 'jinja2', 'plotly', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(small)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["257"]


def test_show(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = output(capsys, "show", "the the\x1b", "-t", small)
    assert "t + h: th e" in printed
    assert "␣ + the: ␣the" in printed
    assert "Ã" not in output(capsys, "show", "naïve", "-t", small)  # text, not the spelling of its bytes
    assert "20 74 68 65" in printed
    assert "🦜" in output(capsys, "show", "🦜", "-t", small)  # of which each token is a part
    assert "\x1b" not in printed
    document = json.loads(output(capsys, "show", "the the", "-t", small, "--json"))
    assert document[0]["merges"] == [["t", "h"], ["th", "e"]]
    assert document[1]["tokens"] == [{"id": 258, "token": "Ġthe", "bytes": "20 74 68 65"}]


def test_show_a_unigram_s_best_path(capsys: pytest.CaptureFixture[str]) -> None:
    model = inputs.path(BOTCHAN) / "botchan_en_unigram_1000.model"
    document = json.loads(output(capsys, "show", "I saw日", "-t", model, "--json"))
    path = [edge for piece in document for edge in piece["path"]]
    assert "".join(edge["piece"] for edge in path) == "▁I▁saw日"
    assert [edge["known"] for edge in path][-1] is False
    assert "unknown" in output(capsys, "show", "I saw日", "-t", model)


def test_pieces_are_the_ids(small: Path) -> None:
    for path in (small, inputs.path("minilm"), inputs.path(BOTCHAN) / "botchan_en_bpe_1000.model"):
        tok = Tokenizer.load(path)
        for text in ("", "The unbelievable 42 <think> naïve\n日本", "<s> the"):
            found = pieces(tok, text)
            assert [id for piece in found for id in piece.ids] == tok.encode(text)
            for piece in found:
                made = [tok.id_of(symbol) for symbol in piece.states()[-1]]
                assert not piece.merges or None in made or made == list(piece.ids)


def test_unreachable_and_partial_tokens() -> None:
    vocabulary = {text: id for id, text in enumerate(["a", "b", "c", "ab", "abc", "bc", "Ã", "©", "Ã©"])}
    merges = [("a", "b"), ("b", "c"), ("Ã", "©")]
    tok = Tokenizer(TokenizerSpec(tokens=list(vocabulary), vocabulary=vocabulary, merges=merges))
    assert [tok.token_text(id) for id in unreachable(tok)] == ["abc"]
    assert [tok.token_text(id) for id in partial(tok)] == ["Ã", "©"]
    minilm = Tokenizer.load(inputs.path("minilm"))
    found = {minilm.token_text(id) for id in unreachable(minilm)}
    assert {"[unused1]", "##!"} <= found
    assert not {"the", "##ing", "é"} & found


def test_report(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "0 unreachable" in output(capsys, "report", small)
    larger = inputs.path("llama-vocab") / "ggml-vocab-gpt-2.gguf"
    assert " 111  \\xa1\n" in output(capsys, "report", "smollm2")  # the byte, not the letter that spells it
    document = json.loads(output(capsys, "report", "smollm2", "--model", "smollm2", "--json"))
    assert document["unreachable"] == []
    assert len(document["partial"]) > 100
    assert all("norm" in entry for entry in document["partial"])
    assert "tokens" in refused(capsys, "report", larger, "--model", "smollm2")


# Comparing


def _declarations(folder: Path, **articles: list[str]) -> Path:
    for code, texts in articles.items():
        body = "".join(
            f'<article data-number="{i}"><p>{text}</p></article>' for i, text in enumerate(texts, 1)
        )
        (folder / f"{code}.html").write_text(f"<title>{code.upper()}</title>{body}")
    return folder


def test_parity_is_over_the_articles_that_both_have(tmp_path: Path) -> None:
    folder = _declarations(tmp_path, eng=["ab", "cd", "ef"], xx=["abcd", "a&amp;"], yy=[])
    languages = declarations(folder)
    assert [(language.name, language.articles) for language in languages if language.code == "xx"] == [
        ("XX", {1: "abcd", 2: "a&"})
    ]
    assert parity(Tokenizer(baselines.bytewise()), languages) == {"eng": 1.0, "xx": 1.5}
    (folder / "eng.html").unlink()
    with pytest.raises(UserError, match="no declaration in English"):
        declarations(folder)


def test_compare(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "udhr").mkdir()
    folder = _declarations(tmp_path / "udhr", eng=["the the"], xx=["a b c d"])
    text = tmp_path / "a.txt"
    text.write_text("the the 42")
    page = tmp_path / "plots.html"
    printed = output(capsys, "compare", small, "smollm2", "--file", text, "--udhr", folder, "--html", page)
    assert "tokens a word" in printed
    assert "parity, median of 2" in printed
    assert [one["kind"] for one in charts(page.read_text())] == ["grid", "bars", "plot"]
    rows: list[dict[str, Any]] = json.loads(
        output(capsys, "compare", small, "--file", text, "--udhr", folder, "--json")
    )
    assert (rows[0]["tokens"], rows[0]["tokens_per_word"], rows[0]["bytes_per_token"]) == (5, 5 / 3, 2.0)
    assert rows[0]["parity"] == {"eng": 1.0, "xx": 3.5}
    vocabulary, *_ = output(capsys, "compare", "smollm2", small).splitlines()[1:]
    assert vocabulary.split() == ["vocabulary", "49,152", f"{len(Tokenizer.load(small)):,}"]
    assert "give the tokenizers" in refused(capsys, "compare")
    assert "is no tokenizer" in refused(capsys, "compare", small, text)


def test_all_the_declarations_are_read() -> None:
    languages = declarations(inputs.path("udhr"))
    assert len(languages) == 532
    assert sum(len(language.articles) == 30 for language in languages) > 500
    some = [language for language in languages if language.code in ("eng", "deu_1996", "mya")]
    ratios = parity(Tokenizer(baselines.bytewise()), some)
    assert ratios["eng"] == 1.0
    assert ratios["mya"] > 2 > ratios["deu_1996"] > 1


# Converting


def test_convert(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x.gguf", "again.json"):
        output(capsys, "convert", small, tmp_path / name)
        assert Tokenizer.load(tmp_path / name).encode("the the") == [257, 258]
    assert "--force" in refused(capsys, "convert", small, tmp_path / "x.gguf")
    assert "which format" in refused(capsys, "convert", small, tmp_path / "x.bin")
    assert "added token '<think>'" in refused(capsys, "convert", small, tmp_path / "x.tiktoken")
    assert "byte-level BPE" in refused(capsys, "convert", small, tmp_path / "x.model")
    assert "this is a BPE" in refused(capsys, "convert", small, tmp_path / "x.txt")


def test_baselines_are_compared_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Their vocabularies are made of the texts; a file of that name is the file."""
    (tmp_path / "text.txt").write_text("the king and the queen, né", "utf-8")
    asked = ["words", "characters", "bytes", "smollm2", "--file", str(tmp_path / "text.txt"), "--json"]
    assert main(["tokenizer", "compare", *asked]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: rows[name]["tokens"] for name in asked[:3]} == {"words": 7, "characters": 26, "bytes": 27}
    assert rows["bytes"]["vocabulary"] == 256 and rows["words"]["vocabulary"] > 7


def test_a_size_without_room_for_characters_says_the_least(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("low lower lowest " * 5)
    train = ["tokenizer", "train", str(tmp_path / "text.txt"), "--kind", "unigram"]
    assert main([*train, "--size", "40", "--output", str(tmp_path / "one.json")]) == 2
    least = re.search(r"ask for (\d+) or more", capsys.readouterr().err)
    assert least is not None and not (tmp_path / "one.json").exists()
    assert main([*train, "--size", least[1], "--output", str(tmp_path / "two.json")]) == 0
