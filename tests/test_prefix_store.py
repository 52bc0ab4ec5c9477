"""Prefixes on disk: a restart answers to the bit as before, and pages are used only as they were written."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cutaway import cli, native
from cutaway.errors import UserError
from cutaway.generate.batch import prefix_store as stores
from cutaway.generate.batch.prefix_cache import cache_scope
from cutaway.generate.batch.prefix_store import PrefixStore
from cutaway.generate.batch.request import Generation
from cutaway.generate.batch.scheduler import Scheduler
from cutaway.generate.decode import finish
from cutaway.store.sealed import Seal
from cutaway.weights.changes import LowRank
from tests import test_runtime as tiny
from tests.test_serve_engine import Words, request, shown
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)
IDS = [*tiny.IDS[:258], 7]  # two pages of 128, and a tail
SECRET = b"0123456789abcdef" * 2
MODEL = b"one model"


def engine(shape: str = "llama", kv_cache: Any = "F16") -> Any:
    of = replace(tiny.config(shape), context=1300)
    return tiny.RuntimeEngine(of, tiny.tensors(of), kv_cache=kv_cache)


@pytest.fixture(scope="module")
def small() -> Any:
    """An engine that tests share: it keeps no pages, which are each scheduler's own."""
    return engine()


@contextmanager
def serving(
    folder: Path, reads: Any, model: bytes = MODEL, secret: bytes | None = None, limit: int = 1 << 30
) -> Iterator[Scheduler]:
    """A scheduler over a folder, whose writes are done when it is left."""
    store = PrefixStore(folder, model, limit, Seal(secret))
    made = Scheduler(reads, Words(), prefixes=store)
    try:
        yield made
    finally:
        made.close()


def ask(serves: Scheduler, ids: Sequence[int] = IDS, **more: Any) -> Generation:
    return finish(serves.submit(request(ids, max_tokens=3, temperature=1, seed=4, logprobs=101, **more)))


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*") if path.is_file())


KINDS = [
    *("llama", "gemma3", "deepseek-v3.2", "diffllama", "phi3"),
    *("lfm2", "qwen3-next", "kimi", "llama Q8_0", "deepseek-v3 Q4_0"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_restart_answers_to_the_bit_as_if_it_had_read(kind: str, tmp_path: Path):
    shape, _, cache = kind.partition(" ")
    first = engine(shape, cache or "F16")
    ids = (tiny.IDS * 4)[: 2 * first.page + 5]
    with serving(tmp_path, first) as serves:
        read = ask(serves, ids)
        assert read.timings.prefill_tokens == len(ids) and serves.stats().restored_tokens == 0
    assert len(files(tmp_path)) == 2
    with serving(tmp_path, engine(shape, cache or "F16")) as serves:
        again = ask(serves, ids)
        assert shown(again) == shown(read)
        assert again.timings.prefill_tokens == 5
        figures = serves.stats()
        assert (figures.restored_tokens, figures.cached_tokens) == (2 * first.page,) * 2
        assert figures.stored.loaded == 2 and figures.stored.nbytes > 2 * first.page_bytes
        assert shown(ask(serves, [*ids, 3])) == shown(ask(serves, [*ids, 3]))  # from memory by now
        assert serves.stats().restored_tokens == 2 * first.page


def test_files_are_for_their_owner_alone(small: Any, tmp_path: Path):
    folder = tmp_path / "new" / "prefixes"
    with serving(folder, small) as serves:
        ask(serves)
    assert [path.stat().st_mode & 0o777 for path in files(folder)] == [0o600, 0o600]
    assert folder.stat().st_mode & 0o777 == files(folder)[0].parent.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    with pytest.raises(UserError, match="others can write there"):
        PrefixStore(folder, MODEL, 1)
    with pytest.raises(UserError, match="is a file: give a folder"):
        PrefixStore(files(folder)[0], MODEL, 1)


def test_what_is_not_this_texts_page_is_read_by_the_model(tmp_path: Path):
    """Another model, another adapter, another key, another salt, another secret, none: nothing is found."""
    of = tiny.config("llama")
    change = {
        f"blocks.{n}.attention.query.weight": LowRank(np.full((1, 50), 0.1), np.full((144, 1), 0.1), scale)
        for n, scale in ((0, 1.0), (2, 0.5))
    }
    other = {name: replace(one, scale=one.scale * 1.5) for name, one in change.items()}
    base = tiny.RuntimeEngine(replace(of, context=1300), tiny.tensors(of))
    mine, theirs, same = (base.adapted(one) for one in (change, other, dict(change)))
    scope = cache_scope(b"key", "salt")
    with serving(tmp_path, mine) as serves:
        ask(serves, cache_scope=scope)
    cases = {
        "the same": (same, MODEL, None, scope),
        "another model": (same, b"another model", None, scope),
        "another adapter": (theirs, MODEL, None, scope),
        "no adapter": (base, MODEL, None, scope),
        "another key": (same, MODEL, None, cache_scope(b"other", "salt")),
        "another salt": (same, MODEL, None, cache_scope(b"key", None)),
        "a secret": (same, MODEL, SECRET, scope),
    }
    restored = {}
    for name, (reads, model, secret, own) in cases.items():
        with serving(tmp_path, reads, model, secret) as serves:
            found = ask(serves, cache_scope=own)
            restored[name] = serves.stats().restored_tokens
        with alone_with(reads) as alone:
            assert shown(found) == shown(ask(alone)), name
    assert restored == dict.fromkeys(cases, 0) | {"the same": 256}


@contextmanager
def alone_with(reads: Any) -> Iterator[Scheduler]:
    made = Scheduler(reads, Words())
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "encrypted"])
def test_a_damaged_page_is_read_again_and_never_used(small: Any, secret: bytes | None, tmp_path: Path):
    with serving(tmp_path, small, secret=secret) as serves:
        read = shown(ask(serves))
    sound = {path: path.read_bytes() for path in files(tmp_path)}
    one, two = sound.values()
    header = 72
    damages = {
        "a bit of the content": lambda data: flipped(data, len(data) // 2),
        "a bit of the tag": lambda data: flipped(data, header - (1 if secret is None else 40)),
        "a bit of the size": lambda data: flipped(data, 17),
        "the magic": lambda data: flipped(data, 0),
        "cut off": lambda data: data[:-1],
        "the header alone": lambda data: data[:header],
        "nothing": lambda data: b"",
        "more": lambda data: data + b"\0",
        "the other page": lambda data: two if data == one else one,
        "huge": lambda data: data[:16] + (2**63).to_bytes(8, "little") + data[24:],
    }
    for name, damage in damages.items():
        for path, data in sound.items():
            path.write_bytes(damage(data))
        with serving(tmp_path, small, secret=secret) as serves:
            assert shown(ask(serves)) == read, name
            figures = serves.stats()
            assert figures.restored_tokens == 0 and figures.stored.damaged == 1, name
    # The first page was deleted and written again; the second, damaged, is found by the next text.
    for expected in (128, 256):
        with serving(tmp_path, small, secret=secret) as serves:
            assert shown(ask(serves)) == read and serves.stats().restored_tokens == expected


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_encrypted_pages_show_nothing_and_need_a_long_secret(small: Any, tmp_path: Path):
    reads = small
    with serving(tmp_path / "plain", reads) as serves:
        ask(serves)
    with serving(tmp_path / "sealed", reads, secret=SECRET) as serves:
        ask(serves)
    plain, sealed = (files(tmp_path / name)[0].read_bytes() for name in ("plain", "sealed"))
    state = reads.new_state()
    reads.prefill(IDS, state)
    pages = [page.tobytes()[:4096] for page in state.pages[:2]]
    assert any(page in plain for page in pages) and not any(page in sealed for page in pages)
    names = [{path.name for path in files(tmp_path / name)} for name in ("plain", "sealed")]
    assert not names[0] & names[1]
    with pytest.raises(UserError, match="has 5 bytes, and at least 32 are needed"):
        Seal(b"short")


def test_the_least_recently_used_go_first_and_a_texts_end_before_its_beginning(small: Any, tmp_path: Path):
    texts = [[n, *IDS] for n in range(3)]
    with serving(tmp_path, small) as serves:
        ask(serves, texts[0])
    size = files(tmp_path)[0].stat().st_size
    with serving(tmp_path, small, limit=5 * size) as serves:
        ask(serves, texts[1])
        ask(serves, texts[0])  # from disk, and so used after the other
        ask(serves, texts[2])
        wait_until(lambda: serves.stats().stored.written == 4, "the pages of two texts are written")
    assert len(files(tmp_path)) == 5
    with serving(tmp_path, small) as serves:
        restored = []
        for text in texts:
            before = serves.stats().restored_tokens
            ask(serves, text)
            restored.append(serves.stats().restored_tokens - before)
    assert restored == [256, 128, 256]


@pytest.mark.parametrize("secret", [None, SECRET], ids=["plain", "encrypted"])
def test_a_folder_is_never_past_its_limit(
    small: Any, secret: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also while a text is written that is as large as the limit, or larger."""
    with serving(tmp_path, small, secret=secret) as serves:
        ask(serves)
    size = files(tmp_path)[0].stat().st_size
    most, write = list[int](), Seal.write

    def measured(self: Seal, *given: Any) -> None:
        most.append(size + sum(path.stat().st_size for path in files(tmp_path) if path.name[0] != "."))
        write(self, *given)

    monkeypatch.setattr(Seal, "write", measured)
    for pages in (3, 2, 1, 0):
        with serving(tmp_path, small, limit=pages * size, secret=secret) as serves:
            ask(serves, [pages, *IDS])
        assert max(most, default=0) <= pages * size and len(files(tmp_path)) == pages
        most.clear()


def test_a_full_disk_loses_nothing(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any):
    other = [5, *IDS]
    with serving(tmp_path, small) as serves:
        read = shown(ask(serves))
    before = {path: path.read_bytes() for path in files(tmp_path)}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with serving(tmp_path, small) as serves:
        with monkeypatch.context() as patch:
            patch.setattr("cutaway.store.files.os.fsync", full)
            answered = shown(ask(serves, other))
            wait_until(lambda: serves.stats().stored.failed == 2, "the write fails")
        assert "the disk is full" in caplog.text
        assert shown(ask(serves)) == read and serves.stats().restored_tokens == 256
        assert shown(ask(serves, other)) == answered
    assert {path: path.read_bytes() for path in files(tmp_path)} == before
    assert not list(tmp_path.rglob(".*"))


def test_several_processes_share_a_folder(small: Any, tmp_path: Path):
    """Each has threads of its own, as in one process here: all write the same pages, and all answer alike."""
    found: list[tuple] = []

    def work() -> None:
        with serving(tmp_path, small, limit=1 << 30) as serves:
            found.extend(shown(ask(serves, [n, *IDS])) for n in range(3))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 9 and len({one[1:3] for one in found}) == 3
    with serving(tmp_path, small) as serves:
        for n in range(3):
            assert shown(ask(serves, [n, *IDS])) in found
        assert serves.stats().restored_tokens == 3 * 256
    assert len(files(tmp_path)) == 6 and not list(tmp_path.rglob(".*"))


def test_of_texts_that_begin_alike_one_loads_the_beginning(small: Any, tmp_path: Path):
    with serving(tmp_path, small) as serves:
        ask(serves)
    with serving(tmp_path, small) as serves:
        with serves.paused():
            streams = [serves.submit(request([*IDS[:257], n], max_tokens=2)) for n in range(4)]
            streams.append(serves.submit(request([9, *IDS], max_tokens=2)))
        done = [finish(stream) for stream in streams]
        assert [one.timings.prefill_tokens for one in done] == [2, 2, 2, 2, 260]
        assert serves.stats().stored.loaded == 2 and serves.stats().restored_tokens == 256


def test_others_are_answered_while_a_text_waits_for_its_pages(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with serving(tmp_path, small) as serves:
        read = shown(ask(serves))
    asked, free = threading.Event(), threading.Event()
    load = PrefixStore.load

    def slowly(self: PrefixStore, *given: Any) -> Any:
        asked.set()
        assert free.wait(60)
        return load(self, *given)

    monkeypatch.setattr(PrefixStore, "load", slowly)
    with serving(tmp_path, small) as serves:
        waits = serves.submit(request(IDS, max_tokens=3, temperature=1, seed=4, logprobs=101))
        gone = serves.submit(request(IDS, max_tokens=3))
        assert asked.wait(60)
        assert len(finish(serves.submit(request([1, 2, 3], max_tokens=4))).ids) == 4
        assert not waits.ended
        gone.cancel()
        free.set()
        assert shown(finish(waits)) == read and serves.stats().restored_tokens == 256


def test_short_prompts_and_answers_are_not_kept(small: Any, tmp_path: Path):
    with serving(tmp_path, small) as serves:
        ask(serves, IDS[: stores.LONG - 1])
        finish(serves.submit(request(IDS[:130], max_tokens=200)))
    assert files(tmp_path) == []
    if os.name != "nt":
        assert tmp_path.exists()


def test_options_that_fit_no_pages_are_refused_before_a_model_is_loaded(tmp_path: Path, capsys: Any):
    short = tmp_path / "short"
    short.write_text("a key")
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (own := tmp_path / "own").mkdir(mode=0o700)
    for options, says in (
        (
            ("--prefix-cache", own, "--prefix-cache-size", "many"),
            "--prefix-cache-size is 'many': give a size",
        ),
        (
            ("--prefix-cache", own, "--prefix-cache-key-file", short),
            "has 5 bytes, and at least 32 are needed",
        ),
        (
            ("--prefix-cache", own, "--prefix-cache-key-file", tmp_path / "no"),
            "the key cannot be read: No such",
        ),
        (("--prefix-cache", short), f"--prefix-cache: {short} is a file: give a folder"),
        (("--slot-save-path", short), f"--slot-save-path: {short} is a file: give a folder"),
        (("--prefix-cache-key-file", short), "--prefix-cache-key-file encrypts what --prefix-cache and --sl"),
        (("--prefix-cache", open_to_all), "others can write there"),
        (("--slot-save-path", open_to_all), "others can write there"),
    ):
        assert cli.main(["serve", "absent", "--port", "0", *map(str, options)]) == 2
        assert says in capsys.readouterr().err


def test_only_pages_that_can_be_stored_are_asked_for(tmp_path: Path):
    of = tiny.config("llama")
    with pytest.raises(UserError, match="Pages on disk are the runtime's alone"):
        Scheduler(tiny.definition(of, tiny.tensors(of)), Words(), prefixes=PrefixStore(tmp_path, MODEL, 1))
