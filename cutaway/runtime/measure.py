"""How fast the runtime is on this machine, and how fast its weights can be read: for `cutaway bench`."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cutaway import native
from cutaway.errors import UserError
from cutaway.runtime.engine import RuntimeEngine

TURNS, TOKENS = 8, 8  # decoding and reading alternate: a machine that others use changes within a second
DEPTH, PROMPT, TEXTS = 2000, 512, 8


def figures(engine: RuntimeEngine, decode: int = 128, deep: int = 32) -> dict[str, float]:
    """Tokens/s of decoding, decoding at depth 2,000, reading 512 and eight texts at once; bytes read a token,
    bytes/s at which as many can be read at all, over and over, and decoding's fraction of that.

    UserError for a model whose context is shorter than that. The ids are arbitrary: speed does not depend on
    them."""
    if engine.max_context < DEPTH + deep:
        raise UserError(
            f"The measurement needs a context of {DEPTH + deep}, and the model's is {engine.max_context}"
        )
    ids = np.random.default_rng(0).integers(0, engine.vocab, DEPTH).tolist()
    state = engine.new_state()
    engine.prefill(ids[:PROMPT], state)  # memory is touched, threads are awake
    state = engine.new_state()
    out = {"read 512": PROMPT / _seconds(lambda: engine.prefill(ids[:PROMPT], state))}
    state = engine.new_state()
    engine.step(ids[0], state)
    out["decode"] = decode / _seconds(lambda: [engine.step(id, state) for id in ids[:decode]])
    out |= read_fraction(engine, ids)
    texts = [engine.new_state() for _ in range(TEXTS)]
    for text in texts:
        engine.prefill(ids[:32], text)
    turns = 32
    out["8 texts"] = (
        turns * TEXTS / _seconds(lambda: [engine.step_each(ids[:TEXTS], texts) for _ in range(turns)])
    )
    state = engine.new_state()
    engine.prefill(ids, state)
    out["decode at 2000"] = deep / _seconds(lambda: [engine.step(id, state) for id in ids[:deep]])
    return out


def read_fraction(engine: RuntimeEngine, ids: list[int]) -> dict[str, float]:
    """Decoding beside a loop that only reads as many bytes, with as many threads, in turns."""
    size, threads = engine.plan.token_nbytes, engine.threads or native.threads()
    parts = [np.ones(size // threads, np.uint8) for _ in range(threads)]
    state = engine.new_state()
    seconds = np.empty((TURNS, 2))
    with ThreadPoolExecutor(threads) as pool:
        for turn in range(TURNS):
            some = ids[turn * TOKENS : (turn + 1) * TOKENS]
            seconds[turn, 0] = _seconds(lambda some=some: [engine.step(id, state) for id in some])
            seconds[turn, 1] = _seconds(lambda: list(pool.map(_read, parts)))
    decoding, reading = seconds.T / TOKENS
    return {
        "bytes a token": float(size),
        "bytes a second": size / float(reading.min()),
        "fraction of reading": float(np.median(reading / decoding)),
    }


def _read(part: np.ndarray) -> None:
    for _ in range(TOKENS):
        part.max()


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
