"""`--svg FOLDER`: what verbs draw, and what is refused before any work."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from cutaway.attention.common import mask_plot, registry, usual
from cutaway.cli import main
from cutaway.inspect import reports
from cutaway.tokenizer import bpe_train
from tests.small import model_file

SHOW = ("tokenizer", "show", "the cat", "--tokenizer", "words.json")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def drawn(folder: Path) -> dict[str, list[str]]:
    """The texts of each drawing, all of which are well-formed."""
    found = {path.stem: ET.parse(path).getroot() for path in sorted(folder.glob("*.svg"))}
    return {
        name: ["".join(one.itertext()) for one in root.iter() if one.tag.endswith("text")]
        for name, root in found.items()
    }


def test_attention_show_draws_the_mask_and_who_shares(folder: Path) -> None:
    assert main(["attention", "show", "gqa", "--svg", "gqa"]) == 0
    assert main(["attention", "show", "mla", "--svg", "mla"]) == 0
    assert main(["attention", "show", "luong", "--window", "2", "--svg", "luong"]) == 0
    assert "mask" in drawn(folder / "gqa") and "heads" not in drawn(folder / "luong")
    (gqa, mla) = (" ".join(drawn(folder / kind)["heads"]) for kind in ("gqa", "mla"))
    assert "8 keys and 8 values of 128 numbers" in gqa and "16 of 32 heads are drawn" in gqa
    assert "one vector of 512 numbers a token" in mla


@pytest.mark.parametrize("kind", registry.names())
def test_every_mechanism_is_drawn_or_has_no_heads(kind: str) -> None:
    made = reports.shared_heads(registry.kind(kind))
    if made is None:
        assert kind in {"bahdanau", "luong", "mamba", "rg_lru", "short_conv"}
    else:
        assert f"Heads of {kind}" in made and ET.fromstring(made) is not None


def test_luongs_window_is_around_a_place_that_each_query_predicts() -> None:
    kind = registry.kind("luong")
    made = mask_plot.draw(kind.like(usual.SMALL, {"window": 2}), 12)
    assert made.mask is not None and "seed 0" in made.caption
    for row in made.mask:
        seen = np.flatnonzero(row)
        assert 1 <= len(seen) <= 5 and seen[-1] - seen[0] == len(seen) - 1
    assert len({tuple(row) for row in made.mask}) > 3


def test_explain_draws_each_part_from_what_it_computed(folder: Path) -> None:
    model_file(folder / "m.gguf")
    assert main(["explain", "hello", "--model", "m.gguf", "--svg", "out"]) == 0
    found = drawn(folder / "out")
    assert {"tokens", "next", "lens", "layers", "heads", "norms"} <= found.keys()
    assert [text for text in found["tokens"] if len(text) == 1] == list("hello")
    assert main(["explain", "hello", "--model", "m.gguf", "--svg", "out", "--compare", "hi"]) == 2


def test_a_block_is_drawn_by_info(folder: Path) -> None:
    model_file(folder / "m.gguf")
    assert main(["info", "m.gguf", "--svg", "out"]) == 0
    assert any("queries of" in text for text in drawn(folder / "out")["block-0"])


def test_chosen_words_are_mapped_with_their_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"king": "1 0 0", "queen": "0.9 0.1 0", "man": "0 1 0", "dog": "0 0 1"}
    text = "\n".join([f"{len(rows)} 3", *(f"{word} {row}" for word, row in rows.items())])
    Path("words.txt").write_text(text + "\n")
    assert main(["embed", "project", "words.txt", "--words", "king, queen, man", "--svg", "out"]) == 0
    assert {"king", "queen", "man"} <= set(drawn(folder / "out")["map"])
    assert main(["embed", "project", "words.txt", "--words", "king"]) == 2
    assert "give both" in capsys.readouterr().err
    assert main(["embed", "project", "words.txt", "--words", "king,", "--svg", "two"]) == 2
    assert "--words has 1 word: a map needs 3" in capsys.readouterr().err


def test_training_shows_its_first_merges(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_text("low " * 5 + "lower " * 2 + "newest " * 6 + "widest " * 3)
    assert main(["tokenizer", "train", "text.txt", "--size", "261", "--output", "words.json"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "merges, in order: e+s 9×, es+t 9×, l+o 7×, lo+w 7×" in printed
    assert main([*SHOW, "--svg", "out"]) == 0
    assert "t" in drawn(folder / "out")["tokens"]


def test_pairs_are_counted_when_they_are_joined() -> None:
    words = {"aab": 2, "ab": 3}
    assert bpe_train.pair_counts(words, [("a", "b"), ("a", "ab")], bytewise=False) == [5, 2]


@pytest.mark.parametrize(
    ("make", "refused"),
    [
        (lambda path: path.write_text("text"), "is a file; --svg names a folder"),
        (lambda path: (path.mkdir(), (path / "a.svg").write_text("")), "has SVG files already"),
    ],
    ids=["file", "full"],
)
def test_what_would_be_lost_is_refused_at_once(
    make: object, refused: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(folder / "out")  # type: ignore[operator]
    assert main(["info", "smollm2", "--svg", "out"]) == 2
    assert re.search(refused, capsys.readouterr().err)
