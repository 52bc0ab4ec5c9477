"""Measure decoding speed, and how fast weights can be read, for `cutaway bench`."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from cutaway import native
from cutaway.errors import UserError
from cutaway.native import packed_product
from cutaway.runtime.engine import RuntimeEngine

TURNS, TOKENS = 8, 8  # decoding and reading alternate: a machine that others use changes within a second
DEPTH, PROMPT, TEXTS = 2000, 512, 8
WARM = 32  # tokens that a text has at least before it is decoded


class Test(NamedTuple):
    """What is timed: a prompt read, or tokens decoded, of so many texts, after so many tokens of each."""

    prompt: int = 0
    tokens: int = 0
    depth: int = 0
    texts: int = 1

    @property
    def name(self) -> str:
        """As llama-bench names it: pp512, tg128 @ d4096; tg32 x 8 is of eight texts at once."""
        what = f"pp{self.prompt}" if self.prompt else f"tg{self.tokens}"
        return (
            what
            + (f" @ d{self.depth}" if self.depth else "")
            + (f" x {self.texts}" if self.texts > 1 else "")
        )

    @property
    def room(self) -> int:
        """Positions that a text takes."""
        return max(self.depth, 1) + self.prompt + self.tokens

    @property
    def count(self) -> int:
        """Tokens of all texts that are timed."""
        return self.prompt or self.tokens * self.texts


def prepared(engine: RuntimeEngine, test: Test) -> Callable[[], float]:
    """What runs a test once, and returns tokens/s. The ids are arbitrary: speed does not depend on them.

    UserError for a test that is longer than the model's context.
    """
    if engine.max_context < test.room:
        raise UserError(
            f"{test.name} needs a context of {test.room:,}, and the model's is {engine.max_context:,}"
        )
    ids = np.random.default_rng(0).integers(0, engine.vocab, test.room).tolist()
    texts = [engine.new_state() for _ in range(test.texts)]
    for text in texts:
        if test.depth or not test.prompt:
            engine.prefill(ids[: max(test.depth, 1)], text)

    def run() -> float:
        states = [engine.fork(text) for text in texts]
        if test.prompt:
            seconds = _seconds(lambda: engine.prefill(ids[: test.prompt], states[0]))
        elif test.texts == 1:
            seconds = _seconds(lambda: [engine.step(id, states[0]) for id in ids[: test.tokens]])
        else:
            each = [[id] * test.texts for id in ids[: test.tokens]]
            seconds = _seconds(lambda: [engine.step_each(some, states) for some in each])
        return test.count / seconds

    return run


def bytes_a_token(engine: RuntimeEngine, test: Test) -> float:
    """Bytes of weights, keys and values that are read for each token of a test.

    Experts count as far as a token passes them; of several tokens in a pass, at most all weights once.
    """
    at_once = test.prompt or test.texts
    weights = min(at_once * engine.packed.token_nbytes, engine.packed.nbytes) / at_once
    return weights + test.depth * engine.page_bytes / engine.page / (test.prompt or 1)


def products_a_token(engine: RuntimeEngine, test: Test) -> float:
    """Products of weights that a token of a test takes; a prompt's head is asked for its last token alone."""
    weights = engine.config.active()
    matrices = sum(
        int(np.prod(shape))
        for name, shape in weights.items()
        if len(shape) > 1 and name.startswith("blocks.")
    )
    head = engine.config.vocab * engine.config.width
    return matrices + head / (test.prompt or 1)


def reading(size: int, threads: int) -> float:
    """Bytes/s at which so many bytes are read over and over, with all threads."""
    parts = [np.ones(size // threads, np.uint8) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        return size * TOKENS / min(_seconds(lambda: list(pool.map(_read, parts))) for _ in range(3))


def multiplying(threads: int, seconds: float = 0.1) -> float:
    """Products/s of bytes that this processor's kernels' own instruction makes, with all threads."""
    rounds = 1 << 10
    with ThreadPoolExecutor(threads) as pool:
        while True:
            start = time.perf_counter()
            made = sum(pool.map(packed_product.products, [rounds] * threads))
            took = time.perf_counter() - start
            if took >= seconds:
                return made / took
            rounds *= 2


def figures(engine: RuntimeEngine, decode: int = 128, deep: int = 32) -> dict[str, float]:
    """Tokens/s of decoding, decoding at depth 2,000, reading 512 and eight texts at once; bytes read a token,
    bytes/s at which as many can be read at all, over and over, and decoding's fraction of that."""
    tests = {
        "read 512": Test(prompt=PROMPT),
        "decode": Test(tokens=decode),
        "8 texts": Test(tokens=32, depth=WARM, texts=TEXTS),
        "decode at 2000": Test(tokens=deep, depth=DEPTH),
    }
    prepared(engine, tests["read 512"])()  # memory is touched, threads are awake
    out = {name: prepared(engine, test)() for name, test in tests.items()}
    return out | read_fraction(engine)


def read_fraction(engine: RuntimeEngine) -> dict[str, float]:
    """Decoding beside a loop that only reads as many bytes, with as many threads, in turns."""
    size, threads = engine.packed.token_nbytes, engine.threads or native.threads()
    parts = [np.ones(size // threads, np.uint8) for _ in range(threads)]
    ids = np.random.default_rng(0).integers(0, engine.vocab, TURNS * TOKENS).tolist()
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
