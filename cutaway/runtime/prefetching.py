"""Choose how weights are prefetched: the way with which this processor decodes fastest.

The core has several ways (native/runtime/prefetch.hpp); which is fastest depends on the processor, by up to a
factor of two. So the first large model that is opened decodes a few tokens with each of them, in turns. The
times are kept for this processor and core. All of them give the same bits.
"""

from __future__ import annotations

import ctypes
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from cutaway import store
from cutaway.errors import OperationalError, UserError
from cutaway.native import library
from cutaway.runtime.engine import RuntimeEngine
from cutaway.store.files import write_file
from cutaway.store.reading import parsed

WAYS = {  # how far ahead, and the number that the core has for it
    "not at all": 0,
    "8-bit types": 1,
    "2 KB": 2048,
    "3 KB": 3072,
    "4 KB": 4096,
    "8 KB": 8192,
}
MEASURED = "prefetching.json"
LEAST = 32 << 20  # bytes of weights: fewer stay in a cache, and are not asked of the memory
MOST = 128 << 20  # bytes that a measured token reads: some of a large model's layers
TURNS, TOKENS = 3, 2
BETTER = 1.04  # times as fast as the usual way: less is chance


def choose(engine: RuntimeEngine) -> None:
    """Let the core use the fastest way, measured with this engine where it is large and none is known."""
    known = measured()
    if known is None and engine.packed.nbytes >= LEAST:
        known = measure(engine)
        _keep(known)
    if known is not None:
        use(fastest(known))


def measure(engine: RuntimeEngine) -> dict[str, float]:
    """Seconds a token of the engine's first layers with each way of prefetching: the best of several runs.

    One thread's own processor time: what other programs take of the processor does not count.
    """
    exact = time.get_clock_info("thread_time").resolution < 1e-5  # Windows counts by 16 ms
    clock = time.thread_time if exact else time.perf_counter
    layers = engine.layers * MOST // max(1, engine.packed.token_nbytes)
    view = engine.first_layers(min(engine.layers, max(1, layers)))
    view.threads = 1
    state = view.new_state()
    view.prefill([0] * TOKENS, state)
    seconds = dict.fromkeys(WAYS, float("inf"))
    before = used()
    try:
        for _ in range(TURNS):
            for way in WAYS:
                use(way)
                turn = view.fork(state)
                begin = clock()
                for _ in range(TOKENS):
                    view.step(0, turn)
                seconds[way] = min(seconds[way], (clock() - begin) / TOKENS)
    finally:
        use(before)
    return seconds


def fastest(seconds: dict[str, float]) -> str:
    """The fastest way, or the usual one where no other is clearly faster."""
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[usual()] > BETTER * seconds[best] else usual()


def measured() -> dict[str, float] | None:
    """What was measured with this processor and core; None: nothing yet."""
    found = _known().get(_key())
    if not isinstance(found, dict) or set(found) != set(WAYS):
        return None
    fits = all(isinstance(one, float) and 0 < one < 60 for one in found.values())
    return found if fits else None


def use(way: str) -> None:
    """Ask the memory so far ahead, one of WAYS, from now on."""
    library.function("cutaway_prefetch_use", ctypes.c_int32)(WAYS[way])


def used() -> str:
    """The way in use."""
    return _named(library.function("cutaway_prefetch", result=ctypes.c_int32)())


def usual() -> str:
    """The way of this instruction set where nothing is measured."""
    return _named(library.function("cutaway_prefetch_usual", result=ctypes.c_int32)())


def path() -> Path:
    """The file of all measurements; without it they are made again."""
    return store.home() / MEASURED


def _named(number: int) -> str:
    return next(name for name, one in WAYS.items() if one == number)


def _key() -> str:
    return f"{library.processor()}, {library.isa()}, core {library.ABI}"


def _known() -> dict[str, Any]:
    try:
        return parsed(path())
    except (UserError, OperationalError):  # none yet, or damaged: measured again
        return {}


def _keep(seconds: dict[str, float]) -> None:
    with suppress(OSError, OperationalError):  # a full disk stops no model
        path().parent.mkdir(parents=True, exist_ok=True)
        write_file(path(), json.dumps(_known() | {_key(): seconds}, indent=1))
