"""`cutaway chat --save`: the conversation and its KV cache, from which --load goes on without reading."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cutaway
from cutaway import cli, native
from cutaway.generate.batch.saved_text import Saver
from cutaway.generate.session import RETOLD, Session
from cutaway.lm import LanguageModel
from cutaway.store.sealed import HEADER, TAG, DamagedError, Seal
from tests import test_runtime as tiny
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
    on = talk(f"and?\n{QUESTION}\n", "--load", saved, "--save", saved)  # and further, by more than a page
    assert on[0].startswith(after[0]) and len(pages.read_bytes()) > len(kept)


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


def test_ctrl_c_in_the_last_answer_leaves_what_was_read_before(
    talk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saved = tmp_path / "talk.json"
    steps = list[int]()

    def interrupted(self: Session, id: int) -> Any:
        self._consistent = False
        logits = self.engine.step(id, self._state)
        steps.append(id)
        if len(steps) == 2:
            raise KeyboardInterrupt
        self._ids.append(id)
        self._consistent = True
        return logits

    with monkeypatch.context() as patched:
        patched.setattr(Session, "step", interrupted)
        first = talk(f"{QUESTION}\n", "--save", saved)
    assert "[stopped; what was written is kept]" in first[1] and "Its KV cache is in" in first[1]
    after = talk("and?\n", "--load", saved)
    assert after[2][0] < 128
    (tmp_path / "talk.json.kv").unlink()
    assert talk("and?\n", "--load", saved)[0] == after[0]


@pytest.mark.parametrize(("shape", "kept"), [("llama", True), ("phi3", False), ("qwen3-next", False)])
def test_an_interrupted_call_leaves_the_pages_that_were_full(shape: str, kept: bool, monkeypatch: Any):
    """Of a text whose pages may rotate otherwise when it grows, and of a recurrence, none is sure."""
    session = Session(engine(shape))
    session.prefill(READ)
    with monkeypatch.context() as patched:
        patched.setattr(session.engine, "step", never_ends)
        with pytest.raises(KeyboardInterrupt):
            session.step(1)
    state: Any = session.storable(len(READ))
    assert (state is not None) == kept
    if kept:
        plain = session.engine.new_state()
        session.engine.prefill(READ[:128], plain)
        assert np.array_equal(session.engine.step(5, state), session.engine.step(5, plain))


def never_ends(*_: Any) -> Any:
    raise KeyboardInterrupt


# ---- states of recurrent layers ----------------------------------------------------------------------------

RECURRENT = ("lfm2", "qwen3-next", "kimi", "falcon-h1", "mamba2")
READ = tiny.IDS[:217]  # a page and a part of one


def engine(shape: str = "qwen3-next", kv_cache: Any = "F16") -> Any:
    of = tiny.config(shape)
    return tiny.RuntimeEngine(of, tiny.tensors(of), 1, kv_cache)


def written(path: Path, reads: Any, ids: list[int] = READ, cut: int = 200) -> Session:
    """A session that read a text in two ways, and whose state is in a file."""
    session = Session(reads)
    session.prefill(ids[:cut])
    for id in ids[cut:]:
        session.step(id)
    state = session.storable(len(ids))
    assert state is not None
    Saver(b"a model", Seal()).write_state(path, reads, b"chat", session.ids[: state.length], state)
    return session


@pytest.mark.parametrize("kind", [*RECURRENT, "qwen3-next Q8_0", "llama", "phi3", "deepseek-v3.2 Q4_0"])
def test_a_stored_state_goes_on_to_the_bit(kind: str, tmp_path: Path):
    shape, _, cache = kind.partition(" ")
    session = written(tmp_path / "state", engine(shape, cache or "F16"))
    fresh = engine(shape, cache or "F16")
    ids, state = Saver(b"a model", Seal()).read_state(tmp_path / "state", fresh, b"chat")
    assert ids == READ[: len(ids)] and len(ids) == (len(READ) if shape in RECURRENT else 128)
    other = Session(fresh)
    other.begin(ids, state)
    other.prefill(READ + READ[:1])
    session.step(READ[0])
    for id in tiny.IDS[:50]:  # into the next page
        assert np.array_equal(session.step(id), other.step(id))
    assert other.ids == session.ids


@pytest.mark.parametrize("shape", RECURRENT)
def test_a_file_of_a_state_depends_on_its_text_alone(shape: str, tmp_path: Path):
    """What another text left in the pages is not in it, nor how the text was read."""
    used = engine(shape)
    Session(used).prefill(list(reversed(tiny.IDS)))
    written(tmp_path / "used", used, cut=130)
    written(tmp_path / "new", engine(shape))
    assert (tmp_path / "used").read_bytes() == (tmp_path / "new").read_bytes()


def test_a_recurrence_is_stored_where_it_is_or_was_marked():
    once = Session(engine())
    once.prefill(READ)
    assert once.storable(len(READ) - 1) is None, "it cannot forget an id"
    session = Session(engine(), lasting=True)
    session.prefill(READ[:150])
    session.prefill(READ)
    session.mark()  # as drafts do
    session.step(7)
    state: Any = session.storable(len(READ))
    assert state.length == len(READ) and session.ids == tuple(READ)
    state = session.storable(len(READ) - 3)
    assert state.length == len(READ) - RETOLD
    state = session.storable(140)
    assert state.length == 150 - RETOLD, "the mark of the prompt before is there"
    session.prefill(READ[:190])
    session.prefill(READ)
    assert session.storable(140) is None, "that mark was replaced"


@pytest.mark.parametrize("shape", RECURRENT)
def test_a_prompt_that_is_taken_back_is_not_a_reason_to_read_all(shape: str):
    """The state comes back to the mark of the prompt before it, also if that one came from a file."""
    for stored in (False, True):
        reads = engine(shape)
        session, plain = Session(reads, lasting=True), engine(shape)
        session.prefill(READ[:100])
        if stored:
            ids, state = session.ids, session.storable(100)
            session = Session(reads, lasting=True)
            session.begin(ids, state)
        session.prefill([*session.ids, *[5, 6, 7] * 20])
        logits, read = session.prefill(again := [*READ[:100], *[9, 8] * 20])
        assert read == len(again) - (100 if stored else 100 - RETOLD)
        assert np.array_equal(logits, plain.prefill(again, plain.new_state()))


@pytest.mark.parametrize("shape", RECURRENT)
def test_the_next_prompt_reads_on_from_the_mark(shape: str):
    """Of a prompt whose end the next one has otherwise; a mark that was passed is not come back to."""
    session, plain = Session(engine(shape), lasting=True), engine(shape)
    asked, thought = READ[:140], [5, 6, 7]
    session.prefill(asked + thought)
    for id in (1, 2, 3):
        session.step(id)
    session.prefill((*session.ids, 4, 4))  # too little for another mark
    logits, read = session.prefill(again := asked + [9] * 30)
    assert read == len(again) - (len(asked) + len(thought) - RETOLD)
    assert np.array_equal(logits, plain.prefill(again, plain.new_state()))
    logits, read = session.prefill(shorter := asked[:100])
    assert read == len(shorter) and np.array_equal(logits, plain.prefill(shorter, plain.new_state()))
    logits, _ = session.prefill(once_more := asked[:99] + [8] * 50)
    assert np.array_equal(logits, plain.prefill(once_more, plain.new_state()))


def test_a_mark_of_what_was_forgotten_is_not_come_back_to():
    reads = engine()
    state = reads.new_state()
    reads.prefill(READ[:50], state)
    reads.mark(state, lasting=True)
    reads.prefill(READ[50:70], state)
    reads.mark(state)
    reads.prefill(READ[70:80], state)
    state.truncate(55)
    assert state.length == 50
    reads.prefill([7] * 40, state)
    state.truncate(85)  # past where the draft's mark was
    assert state.length == 50
    fresh = reads.new_state()
    reads.prefill(READ[:50], fresh)
    assert np.array_equal(reads.step(3, state), reads.step(3, fresh))


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_damaged_state_is_not_used(tmp_path: Path):
    path, reads, saver = tmp_path / "state", engine(), Saver(b"a model", Seal())
    written(path, reads)
    whole = path.read_bytes()
    carried = HEADER.size + TAG + 4 * reads.packed.state_size  # the last record: what the recurrence has
    written(tmp_path / "other", reads, [*READ[:-1], READ[-1] ^ 1])
    theirs = (tmp_path / "other").read_bytes()
    cases = {
        **{f"a bit at {at}": _flipped(whole, at) for at in (90, len(whole) // 2, len(whole) - carried // 2)},
        "another text's recurrence": whole[:-carried] + theirs[-carried:],
        "no recurrence": whole[:-carried],
        "cut off": whole[:-1],
        "longer": whole + b"\0",
    }
    for name, data in cases.items():
        path.write_bytes(data)
        with pytest.raises(DamagedError):
            pytest.fail(f"{name}: {saver.read_state(path, reads, b'chat')}")
    path.write_bytes(whole)
    for other, scope in ((Saver(b"b model", Seal()), b"chat"), (saver, b"another")):
        with pytest.raises(DamagedError):
            other.read_state(path, reads, scope)
    saver.read_state(path, reads, b"chat")


def test_a_chat_with_a_recurrent_model_goes_on_from_its_state(talk: Any, tmp_path: Path):
    plain = cutaway.load(model_file(tmp_path / "plain.gguf"))
    of = replace(tiny.config("qwen3-next"), vocab=plain.config.vocab, context=plain.config.context)
    checkpoint = replace(plain.checkpoint, config=of, tensors=tiny.tensors(of), family=None)
    LanguageModel(checkpoint).save(model := tmp_path / "recurrent")
    saved, pages = tmp_path / "talk.json", tmp_path / "talk.json.kv"
    whole = talk(f"{QUESTION}\nand?\n", model=model)
    first = talk(f"{QUESTION}\n", "--save", saved, model=model)
    assert f"Its KV cache is in {pages}" in first[1]
    after = talk("and?\n", "--load", saved, model=model)
    assert first[0] + after[0] == whole[0] and after[2] == whole[2][1:] and after[2][0] < 80
    kept = pages.read_bytes()
    pages.write_bytes(_flipped(kept, len(kept) - 1))
    damaged = talk("and?\n", "--load", saved, model=model)
    assert damaged[0] == after[0] and damaged[2][0] > 128 and "talk.json.kv is damaged" in damaged[1]
    _check_undone(talk, tmp_path, model, first[2][0])


def _check_undone(talk: Any, tmp_path: Path, model: Path, whole: int) -> None:
    """Of one question the state before it is kept; of two it is not, and a note says what that costs."""
    saved, pages = tmp_path / "undone.json", tmp_path / "undone.json.kv"
    expected = talk(f"{QUESTION}\nand?\n", model=model)[0]
    undone = talk(f"{QUESTION}\n{QUESTION}\n/undo\n", "--save", saved, model=model)
    after = talk("and?\n", "--load", saved, model=model)
    assert expected.endswith(after[0]) and after[2][0] < 80 and "KV cache is in" in undone[1]
    asked = talk(f"{QUESTION}\n{QUESTION}\n/undo\nand?\n", model=model)
    assert expected.endswith(asked[0].splitlines()[-1] + "\n") and asked[2][2] < 80
    pages.unlink()
    saved.unlink()
    twice = talk(f"{QUESTION}\n" * 3 + "/undo\n/undo\n", "--save", saved, model=model)
    assert not pages.exists() and "--load reads the conversation again" in twice[1]
    after = talk("and?\n", "--load", saved, model=model)
    assert expected.endswith(after[0]) and after[2][0] > whole
