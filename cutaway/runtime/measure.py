"""How fast the runtime is on this machine, and how fast memory can be read: what `cutaway bench` prints."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cutaway.errors import Refused
from cutaway.runtime.engine import RuntimeEngine

WORDS = 16 << 20  # 64-bit words that each thread reads: 128 MiB, more than a cache holds
DEPTH, PROMPT, TEXTS = 2000, 512, 8


def figures(engine: RuntimeEngine, decode: int = 128, deep: int = 32) -> dict[str, float]:
    """Tokens/s of decoding, decoding at depth 2,000, reading 512 and eight texts at once; bytes read a token.

    Refused for a model whose context is shorter than that. The ids are arbitrary: speed does not depend on
    them."""
    if engine.max_context < DEPTH + deep:
        raise Refused(
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
    out["bytes a token"] = float(engine.plan.token_nbytes)
    return out


def read_bandwidth(threads: int, times: int = 5) -> float:
    """Bytes a second that so many threads read of memory at most: each sums words of its own."""
    words = [np.ones(WORDS, np.uint64) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = min(_seconds(lambda: list(pool.map(np.max, words))) for _ in range(times))
    return threads * WORDS * 8 / seconds


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
