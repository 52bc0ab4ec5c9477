"""What a careless user or a bad disk does to slots that are saved, and to pages that are kept on disk."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cutaway import cli, native
from cutaway.generate.batch.prefix_store import PrefixStore
from cutaway.generate.batch.saved_text import Saver
from cutaway.serve.saved_slots import SavedSlots
from cutaway.store.files import part_of
from cutaway.store.sealed import Seal
from tests import serving
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)
PROMPT = " ".join(f"ship {n} is here" for n in range(60))
ASKED = {"prompt": PROMPT, "n_predict": 4, "temperature": 0}
SAVE, RESTORE, ERASE = (f"/slots/0?action={action}" for action in ("save", "restore", "erase"))


@pytest.fixture(scope="module")
def lm() -> Any:
    return serving.model()


@contextmanager
def server(lm: Any, folder: Path, **more: Any) -> Iterator[Any]:
    slots = SavedSlots(folder, Saver(b"model", Seal()), 1 << 30)
    with serving.running(lm, slots=slots, **more) as made:
        yield made


def read(answer: dict[str, Any]) -> int:
    """The tokens of an answer that was cut off, whose last one the model has not read."""
    return answer["tokens_evaluated"] + answer["tokens_predicted"] - 1


# ---- slots -------------------------------------------------------------------------------------------------


def test_a_short_text_is_saved_and_restored_whole(lm: Any, tmp_path: Path):
    """llama-server counts all that a slot has read; here no page of it is full."""
    asked = {"prompt": "A short text", "n_predict": 6, "temperature": 0, "ignore_eos": True}
    with server(lm, tmp_path) as made:
        tokens = read(made.post("/completion", asked).json())
        assert made.post(SAVE, {"filename": "a"}).json()["n_saved"] == tokens < 128
    with server(lm, tmp_path) as made:
        assert made.post(RESTORE, {"filename": "a"}).json()["n_restored"] == tokens
        assert made.post(SAVE, {"filename": "b"}).json()["n_saved"] == tokens
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        assert made.post(ERASE, {}).json()["n_erased"] == tokens


def test_of_a_text_whose_pages_were_evicted_what_is_left_counts(lm: Any, tmp_path: Path):
    with server(lm, tmp_path) as made:
        assert read(made.post("/completion", ASKED).json()) > 256
        cache = made.service.decoder.prefix_cache
        cache.drop(list(cache.pages)[-2:-1])  # the second page: a text's first one was used last
        assert made.post(SAVE, {"filename": "a"}).json()["n_saved"] == 128


def test_of_a_restored_text_what_there_is_room_for_counts(lm: Any, tmp_path: Path):
    with server(lm, tmp_path) as made:
        tokens = read(made.post("/completion", ASKED).json())
        made.post(SAVE, {"filename": "a"})
        assert made.post(ERASE, {}).json()["n_erased"] == tokens > 256
        made.service.decoder.prefix_cache.capacity = 1
        assert made.post(RESTORE, {"filename": "a"}).json()["n_restored"] == 128
        assert made.post("/completion", ASKED).json()["tokens_cached"] == 128


def test_an_end_id_follows_what_was_read_whole(lm: Any, tmp_path: Path):
    with server(lm, tmp_path) as made:
        bias = [[id, 100.0] for id in lm.tokenizer.eos_ids]
        answer = made.post("/completion", ASKED | {"logit_bias": bias}).json()
        assert (answer["stop_type"], answer["tokens_predicted"]) == ("eos", 0)
        assert made.post(SAVE, {"filename": "a"}).json()["n_saved"] == answer["tokens_evaluated"]


def test_what_an_aborted_request_has_read_is_its_slots_text(lm: Any, tmp_path: Path):
    with server(lm, tmp_path) as made:
        before = read(made.post("/completion", {"prompt": "Another text", "n_predict": 4}).json())
        body = ASKED | {"n_predict": 2000, "stream": True, "ignore_eos": True}
        url = f"{made.url}/completion"
        with serving.httpx.stream("POST", url, json=body, timeout=60) as streamed:
            for _ in zip(streamed.iter_lines(), range(6), strict=False):
                pass
        slots = made.service.slots
        wait_until(lambda: len(slots._texts[b"", 0].ids) != before, "the request is cancelled")
        prompt = len(lm.ids(PROMPT))
        assert made.post(SAVE, {"filename": "a"}).json()["n_saved"] > prompt
        assert slots._texts[b"", 0].ids[:prompt] == tuple(lm.ids(PROMPT))


def test_a_slot_that_read_a_salted_text_last_has_nothing_to_save(lm: Any, tmp_path: Path):
    """And not the text before it."""
    with server(lm, tmp_path) as made:
        asked = {"prompt": PROMPT, "max_tokens": 2}
        assert made.post("/v1/completions", asked).status_code == 200
        assert made.post(SAVE, {"filename": "a"}).status_code == 200
        assert made.post("/v1/completions", asked | {"cache_salt": "salt"}).status_code == 200
        refused = made.post(SAVE, {"filename": "a"})
        assert refused.status_code == 400 and "has read no text" in refused.text


def test_saves_of_one_name_at_once_all_end_well(lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """They wait for each other, for as long as a large text on a slow disk takes."""
    write = Seal.write

    def slow(*given: Any) -> None:
        time.sleep(0.15)
        write(*given)

    monkeypatch.setattr(Seal, "write", slow)
    statuses = list[int]()
    with server(lm, tmp_path) as made:
        tokens = read(made.post("/completion", ASKED).json())

        def save() -> None:
            statuses.append(made.post(SAVE, {"filename": "a"}).status_code)

        threads = [threading.Thread(target=save) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [200] * 4
        assert made.post(RESTORE, {"filename": "a"}).json()["n_restored"] == tokens


def test_another_server_that_saves_into_the_file_is_named(lm: Any, tmp_path: Path):
    fcntl = pytest.importorskip("fcntl")
    with server(lm, tmp_path) as made:
        made.post("/completion", ASKED)
        part = part_of(tmp_path / "a")
        with part.open("wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            refused = made.post(SAVE, {"filename": "a"})
        assert refused.status_code == 409 and "another server saves into this file" in refused.text


def test_why_a_slot_is_not_saved_does_not_depend_on_its_folders_name(lm: Any, tmp_path: Path):
    folder = tmp_path / "full"
    with server(lm, folder) as made:
        made.post("/completion", ASKED)
        folder.rmdir()
        refused = made.post(SAVE, {"filename": "a"})
        assert refused.status_code == 507 and "its folder cannot be written to" in refused.text


def test_a_file_that_goes_while_the_folder_is_measured_is_no_error(
    lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with server(lm, tmp_path) as made:
        made.post("/completion", ASKED)
        gone, is_file = tmp_path / "gone", Path.is_file
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rglob", lambda self, pattern: [gone])
            patched.setattr(Path, "is_file", lambda self: self == gone or is_file(self))
            assert made.post(SAVE, {"filename": "a"}).status_code == 200


def test_pages_that_cannot_be_deleted_are_an_error(lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = PrefixStore(tmp_path / "pages", b"model", 1 << 30)
    with server(lm, tmp_path / "slots", prefixes=store) as made:
        tokens = read(made.post("/completion", ASKED).json())
        wait_until(lambda: made.service.decoder.stats().stored.written == 2, "the pages are written")
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", denied)
            refused = made.post(ERASE, {})
        assert refused.status_code == 500 and "were not deleted" in refused.text
        assert made.post(ERASE, {}).json()["n_erased"] == tokens
    assert not list((tmp_path / "pages").glob("*/*"))


def denied(*_: Any, **__: Any) -> Any:
    raise PermissionError(errno.EACCES, "Permission denied")


# ---- pages on disk -----------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_read_any_more_stops_no_answer(
    lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
):
    """Taken away from the server while it runs, or on a network disk that is gone."""
    with serving.running(lm, prefixes=PrefixStore(tmp_path, b"model", 1 << 30)) as made:
        before = made.post("/completion", ASKED).json()["content"]
    for name in ("is_file", "exists", "stat"):
        own = getattr(Path, name)

        def gone(self: Path, *given: Any, own: Any = own, **more: Any) -> Any:
            if tmp_path in self.parents:
                raise OSError(errno.ESTALE, "Stale file handle")
            return own(self, *given, **more)

        monkeypatch.setattr(Path, name, gone)
    with serving.running(lm, prefixes=PrefixStore(tmp_path, b"model", 1 << 30)) as made:
        assert made.post("/completion", ASKED).json()["content"] == before
        wait_until(lambda: made.service.decoder.stats().stored.failed == 2, "the failure is counted")
    assert "Prefixes are not kept for 60 s: " in caplog.text


def test_requests_go_on_where_no_thread_can_be_started(
    lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
):
    """In a container with too few processes no request is lost, and none that begins alike waits."""

    def none(*_: Any, **__: Any) -> Any:
        raise RuntimeError("can't start new thread")

    with serving.running(lm, prefixes=PrefixStore(tmp_path, b"model", 1 << 30)) as made:
        before = made.post("/completion", ASKED).json()["content"]
    store = PrefixStore(tmp_path, b"model", 1 << 30)
    with serving.running(lm, prefixes=store) as made:
        with monkeypatch.context() as patched:
            patched.setattr(store._reads, "submit", none)
            patched.setattr(store._writes, "submit", none)
            for n in range(2):
                answer = made.post("/completion", ASKED | {"prompt": f"{PROMPT} {n}"}).json()
                assert answer["tokens_cached"] == (256 if n else 0), answer
            assert "can't start new thread" in caplog.text
            made.post(ERASE, {})
            made.service.decoder.prefix_cache.drop(list(made.service.decoder.prefix_cache.pages))
        assert made.post("/completion", ASKED).json()["content"] == before
        assert store._pending == 0


def test_a_page_that_cannot_be_opened_is_not_deleted(
    lm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
):
    """A process with too many open files has sound pages."""
    with serving.running(lm, prefixes=PrefixStore(tmp_path, b"model", 1 << 30)) as made:
        made.post("/completion", ASKED)
    files = {path: path.read_bytes() for path in tmp_path.glob("*/*")}

    def too_many(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with serving.running(lm, prefixes=PrefixStore(tmp_path, b"model", 1 << 30)) as made:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "open", too_many)
            assert made.post("/completion", ASKED).json()["tokens_cached"] == 0
        assert made.service.decoder.stats().stored.damaged == 0
    assert "is not readable (Too many open files)" in caplog.text
    assert {path: path.read_bytes() for path in tmp_path.glob("*/*")} == files


def test_options_of_folders_that_do_not_go_together(tmp_path: Path, capsys: Any, monkeypatch: Any):
    """Pages and slots have a limit each; `default` is a folder's short name for pages alone."""
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    one = str(tmp_path / "one")
    both = ["--prefix-cache", one, "--slot-save-path", os.path.join(one, "..", "one")]
    assert cli.main(["serve", "absent", *both]) == 2
    assert "name one folder, each with a limit of its own: give them two" in capsys.readouterr().err
    assert cli.main(["serve", "absent", "--slot-save-path", "default"]) == 2
    assert (tmp_path / "default").is_dir() and not (tmp_path / "home" / "prefixes").exists()
    (tmp_path / "file").touch()
    assert cli.main(["serve", "absent", "--slot-save-path", "file/below"]) == 1
    assert "give another folder" in " ".join(capsys.readouterr().err.split())
