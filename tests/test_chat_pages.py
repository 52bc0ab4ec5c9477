"""`cutaway chat --save`: the conversation and its KV cache, from which --load goes on without reading."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from cutaway import cli, native
from tests.small import model_file

pytestmark = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)
QUESTION = "What is the harbour? " * 7  # more than a page, in bytes
OPTIONS = ("--temperature", "0", "--max-tokens", "4", "--repetition-penalty", "1")


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """What a chat prints, its notes, and how many ids each of its questions had read."""
    path = model_file(tmp_path / "model.gguf")
    read: list[int] = []

    def have(lines: str, *options: Any, model: Path = path) -> tuple[str, str, list[int]]:
        from cutaway.generate.session import Session

        prefill, before = Session.prefill, len(read)

        def counted(self: Any, ids: Any) -> Any:
            logits, count = prefill(self, ids)
            read.append(count)
            return logits, count

        with monkeypatch.context() as patch:
            patch.setattr("sys.stdin", io.StringIO(lines))
            patch.setattr(Session, "prefill", counted)
            code = cli.main(["chat", str(model), *OPTIONS, *map(str, options)])
        out, err = capsys.readouterr()
        assert code in (0, 2), err
        return out, err, read[before:]

    return have


def test_load_reads_on_from_the_pages_that_save_left(talk: Any, tmp_path: Path):
    saved = tmp_path / "talk.json"
    pages = tmp_path / "talk.json.kv"
    whole = talk(f"{QUESTION}\nand?\n")
    first = talk(f"{QUESTION}\n", "--save", saved)
    assert f"Its KV cache is in {pages}" in first[1] and pages.stat().st_mode & 0o777 == 0o600
    kept = pages.read_bytes()
    after = talk("and?\n", "--load", saved)
    assert (first[0] + after[0]) == whole[0]
    assert after[2][0] < 128 < first[2][0] and "damaged" not in after[1]
    pages.write_bytes(kept[:-1])
    damaged = talk("and?\n", "--load", saved)
    assert damaged[0] == after[0] and damaged[2][0] > 128 and "talk.json.kv is damaged" in damaged[1]
    pages.write_bytes(kept)
    other = model_file(tmp_path / "other.gguf", tied=False)
    assert "of another model" in talk("and?\n", "--load", saved, model=other)[1]
    on = talk("and?\n", "--load", saved, "--save", saved)  # and further
    assert on[0] == after[0] and pages.read_bytes() != kept


def test_what_is_taken_back_is_not_saved(talk: Any, tmp_path: Path):
    saved = tmp_path / "talk.json"
    pages = tmp_path / "talk.json.kv"
    talk(f"hi\n{QUESTION}\n/undo\n", "--save", saved)
    assert "harbour" not in saved.read_text("utf-8") and not pages.exists()
    talk(f"{QUESTION}\n", "--load", saved, "--save", saved)
    assert pages.exists()
    talk("/clear\n", "--load", saved, "--save", saved)
    assert saved.read_text("utf-8").strip() == "[]" and not pages.exists()


def test_save_does_not_replace_and_needs_a_kv_cache(talk: Any, tmp_path: Path, monkeypatch: Any):
    saved = tmp_path / "talk.json"
    saved.write_text("[]")
    assert "already exists" in talk("hi\n", "--save", saved)[1]
    assert "which tools and --steer do not leave" in talk("hi\n", "--save", "new", "--tools", "calculator")[1]
    monkeypatch.setenv("CUTAWAY_PREFIX_CACHE_KEY", "short")
    assert "at least 32 are needed" in talk("hi\n", "--save", tmp_path / "new.json")[1]
