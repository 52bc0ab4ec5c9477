"""The runtime's pages: used again once nothing refers to them, whatever they hold, and made ahead."""

import gc
import time

import numpy as np
import pytest

from cutaway import native
from cutaway.runtime import kv_cache
from cutaway.runtime.kv_cache import PAGES_AT_ONCE, Pages
from tests import test_runtime as tiny

needs_core = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)
BROKEN = 0x7E00  # a half that is no number


def test_a_page_is_used_again_when_nothing_refers_to_it() -> None:
    store = Pages(64)
    first, second = store.take(), store.take()
    where, kept = first.ctypes.data, [second]
    del second
    assert store.spare() == 0
    del first
    gc.collect()
    assert store.spare() == 1
    third = store.take()
    assert third.ctypes.data == where and store.spare() == 0
    pages = [third, *kept, *(store.take() for _ in range(3 * PAGES_AT_ONCE))]
    for n, page in enumerate(pages):
        page[:] = n
    assert all((page == n).all() for n, page in enumerate(pages))


def test_no_more_is_kept_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "KEPT", 10 * 2 * 64)
    store = Pages(64)
    pages = [store.take() for _ in range(40)]
    del pages
    assert store.spare() == 10


@needs_core
@pytest.mark.parametrize("shape", ["llama", "gemma3"])
def test_what_an_earlier_text_left_is_never_read(shape: str) -> None:
    of = tiny.config(shape)
    entries = tiny.tensors(of)
    fresh, used = tiny.RuntimeEngine(of, entries), tiny.RuntimeEngine(of, entries)
    before = [used.new_state() for _ in range(2)]
    for state in before:
        used.prefill(tiny.IDS[::-1][:280], state)
        for page in state.pages:
            page[:] = BROKEN
    addresses = {page.ctypes.data for state in before for page in state.pages}
    del before, state, page
    states = fresh.new_state(), used.new_state()
    for start, stop in ((0, 100), (100, 130), (130, 131), (131, 270)):
        ids = tiny.IDS[start:stop]
        expected, found = (
            engine.read([ids], [state], range(len(ids)))
            for engine, state in zip((fresh, used), states, strict=True)
        )
        assert np.array_equal(expected, found)
    assert {page.ctypes.data for page in states[1].pages} <= addresses


@needs_core
def test_pages_are_made_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    of = tiny.config("llama")
    engine = tiny.RuntimeEngine(of, tiny.tensors(of))
    pauses: list[int] = []
    while engine.make_ahead(6, lambda: pauses.append(1)):
        pass
    assert len(pauses) == 6 * -(-engine._store.halves // kv_cache.PIECE)
    assert engine._store.spare() == 6
    state = engine.new_state()
    engine.prefill(tiny.IDS[:200], state)
    assert engine._store.spare() == 4 and len(state.pages) == 2
    assert engine.make_ahead(5, time.time) and not engine.make_ahead(5, time.time)
    assert engine._store.spare() == 5
    monkeypatch.setattr(engine._store, "most", 3)
    assert not engine.make_ahead(10, time.time)
    assert engine._store.spare() == 5
