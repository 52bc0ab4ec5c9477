"""Search in a folder: what is read, what is left alone, and that nothing is lost half-way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cutaway.embedding import search
from cutaway.embedding.passages import LONGEST, decoded, fitting, passages
from cutaway.errors import OperationalError, UserError
from tests import inputs

TOPICS = ("cat", "river", "money")


class Counter:
    """Vectors that count words, and how many texts were read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, texts: list[str]) -> np.ndarray:
        self.read += texts
        rows = np.array([[text.count(topic) for topic in TOPICS] for text in texts], np.float32) + 0.01
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def always(text: str) -> bool:
    return True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "files"
    (home / "deep").mkdir(parents=True)
    (home / "a.txt").write_text("A cat.\n\nAnother cat.\n")
    (home / "deep" / "b.md").write_text("The river runs.\n")
    (home / "c.csv").write_bytes("money,money\r\n".encode("utf-16"))
    (home / "d.bin").write_bytes(b"\x00\x01\x02cat")
    (home / "e.txt").write_bytes(b"\xff\xfa no UTF-8")
    (home / ".hidden").write_text("cat cat cat")
    return home


def opened(folder: Path, model: str = "one", rebuild: bool = False) -> search.Index:
    return search.Index(folder, folder.parent / "index", model, rebuild)


def test_passages_hold_all_of_a_text_and_know_their_lines() -> None:
    draw = np.random.default_rng(3)
    words = [f"w{n}" for n in range(4000)]
    text, n = "", 0
    while n < len(words):
        step = int(draw.integers(1, 60))
        text += " ".join(words[n : n + step]) + draw.choice(["\n", "\n\n", "\n \t\n", "\r\n\r\n"])
        n += step
    found = passages(text)
    assert all(len(piece.text) <= LONGEST for piece in found)
    assert set(" ".join(piece.text for piece in found).split()) == set(words)
    lines = text.replace("\r\n", "\n").split("\n")
    for piece in found:
        assert piece.text.split()[0] in lines[piece.line - 1].split()
    whole = passages("x" * 2500)
    assert [len(piece.text) for piece in whole] == [1000, 1000, 500]
    assert passages(" \n\n \t") == []
    short = passages("one " * 30 + "\n\n" + "two " * 150 + "\n\n" + "end " * 20 + "\n\n" + "more " * 180)
    assert short[1].text.startswith("end") and short[0].text.endswith("end")  # the seam is in both


def test_a_passage_that_the_model_cannot_hold_is_halved() -> None:
    pieces = fitting(passages("word " * 150), lambda text: len(text) < 100)
    assert all(len(piece.text) < 100 for piece in pieces)
    assert " ".join(piece.text for piece in pieces).split() == ["word"] * 150


def test_what_is_text() -> None:
    assert decoded(b"\xef\xbb\xbfa") == "a" and decoded("ä".encode("utf-16")) == "ä"
    assert decoded(b"a\x00b") is None and decoded(b"\xff") is None and decoded(b"") == ""


def test_only_what_changed_is_read_again(folder: Path) -> None:
    embed = Counter()
    first = opened(folder).update(embed, always)
    assert (first.read, first.skipped, first.passages) == (3, 2, 3)
    assert opened(folder).search(embed(["river"])[0], 2)[0].path == "deep/b.md"
    embed.read.clear()
    again = opened(folder).update(embed, always)
    assert (again.read, again.unchanged, again.skipped) == (0, 3, 2) and not embed.read
    os.utime(folder / "a.txt", (1, 1))  # touched, not changed
    assert opened(folder).update(embed, always).read == 0 and not embed.read
    (folder / "a.txt").write_text("money money money money")
    (folder / "deep" / "b.md").unlink()
    changed = opened(folder).update(embed, always)
    assert (changed.read, changed.dropped, changed.passages) == (1, 1, 2)
    assert embed.read == ["money money money money"]
    assert {hit.path for hit in opened(folder).search(embed(["river"])[0], 9)} == {"a.txt", "c.csv"}


def test_stopping_loses_one_file_and_no_more(folder: Path) -> None:
    embed = Counter()

    def stopped(texts: list[str]) -> np.ndarray:
        if embed.read:
            raise KeyboardInterrupt
        return embed(texts)

    with pytest.raises(KeyboardInterrupt):
        opened(folder).update(stopped, always)
    assert opened(folder).search(np.ones(3, np.float32), 9)[0].path == "a.txt"
    embed.read.clear()
    done = opened(folder).update(embed, always)
    assert (done.read, done.unchanged) == (2, 1) and "A cat." not in embed.read


def test_another_model_is_refused_and_rebuilds_on_request(folder: Path) -> None:
    embed = Counter()
    opened(folder).update(embed, always)
    with pytest.raises(UserError, match=r"made by the model one, .* add --rebuild"):
        opened(folder, "two")
    assert opened(folder, "two", rebuild=True).update(embed, always).read == 3
    assert opened(folder, "two").update(embed, always).unchanged == 3


def test_many_passages_go_through_usearch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("usearch")
    embed = Counter()
    index = opened(folder)
    index.update(embed, always)
    exact = index.search(embed(["river"])[0], 3)
    monkeypatch.setattr(search, "EXACT", 1)
    for _ in range(2):  # made, then loaded
        found = index.search(embed(["river"])[0], 3)
        assert found[0].path == exact[0].path == "deep/b.md"
        assert np.allclose([hit.score for hit in found], [hit.score for hit in exact], atol=1e-5)
    assert len(list(index.home.glob("vectors-*.usearch"))) == 1


def test_a_damaged_index_is_named(folder: Path) -> None:
    home = folder.parent / "index"
    home.mkdir()
    (home / "index.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(OperationalError, match="delete that folder"):
        opened(folder)
    with pytest.raises(UserError, match="no such folder"):
        search.Index(folder / "nowhere", home, "one")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cutaway", "embed", *words], capture_output=True, text=True, check=False
    )


def test_the_commands(tmp_path: Path) -> None:
    model = str(inputs.path("minilm"))
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "pets.txt").write_text("Our kitten sleeps on the sofa all day.\n")
    (notes / "bank.txt").write_text("The central bank raised interest rates by half a percent.\n")
    where = ("--model", model, "--index", str(tmp_path / "index"), "--json")
    done = run("search", str(notes), "what does the cat do?", *where)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["passages"][0]["path"] == "pets.txt" and found["files"]["read"] == 2
    assert sorted(path.name for path in notes.iterdir()) == ["bank.txt", "pets.txt"]
    out = tmp_path / "x.npy"
    done = run("text", "a cat", "a kitten", "--model", model, "--output", str(out))
    assert done.returncode == 0 and "2 vectors of 384" in done.stdout
    x = np.load(out)
    assert x.dtype == np.float32 and x[0] @ x[1] > 0.6
    assert run("text", "--model", model).returncode == 2
