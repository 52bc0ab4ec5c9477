"""Decoding and reading beside llama.cpp and ik_llama.cpp, with one thread and with all, in turns.

    python -m bench.decoding --llama-bench PATH --ik-llama-bench PATH [--turns 2] MODEL.gguf ...

Tokens/s, medians of the turns: 64 decoded tokens with one thread and with all, and a prompt of 512 read with
all. Of ik_llama.cpp the better of -rtr 0 and 1 (weights as in the file, or repacked); both peers run without
flash attention, which matters little at this depth. "of reading" is the share of the speed at which a loop
that does nothing else reads as many bytes. A minute and a half a turn for a file of a billion weights.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cutaway
from bench import llama_bench
from cutaway import native
from cutaway.runtime import measure, prefetching
from cutaway.runtime.engine import RuntimeEngine
from cutaway.runtime.measure import Test

TOKENS = 64
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--ik-llama-bench", type=Path)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("models", nargs="+", type=Path)
    given = parser.parse_args()
    every = native.threads()
    for path in given.models:
        turns: dict[str, list[Figures]] = {}
        for _ in range(given.turns):
            turns.setdefault("cutaway", []).append(ours(path, every))
            if given.ik_llama_bench:
                speed = partial(llama_bench.speed_of_ik, given.ik_llama_bench, path)
                turns.setdefault("ik_llama.cpp", []).append(theirs(speed, every))
            if given.llama_bench:
                speed = partial(llama_bench.speed, given.llama_bench, path)
                turns.setdefault("llama.cpp", []).append(theirs(speed, every))
        print(f"{path.name} ({native.isa()}, asked ahead: {prefetching.used()})")
        for engine, rows in turns.items():
            cells = [f"{name} {statistics.median(row[name] for row in rows):.4g}" for name in rows[0]]
            print(f"  {engine:13} " + "   ".join(cells), flush=True)


def ours(path: Path, every: int) -> Figures:
    """This engine's figures."""
    engine = cutaway.load(path, engine="runtime").engines.runtime
    assert isinstance(engine, RuntimeEngine)
    found, size = {}, engine.packed.token_nbytes
    for threads in (1, every):
        engine.threads = threads
        speed = measure.prepared(engine, Test(tokens=TOKENS))()
        reading = measure.reading(size, threads) / size
        found |= {f"decode {threads}": speed, f"of reading {threads}": speed / reading}
    return found | {"read 512": measure.prepared(engine, Test(prompt=512))()}


def theirs(speed: Callable[..., float], every: int) -> Figures:
    """A llama-bench's figures; ``speed`` is its tokens/s with so many threads and these arguments."""
    found = {f"decode {threads}": speed(threads, "-fa", 0, "-p", 0, "-n", TOKENS) for threads in (1, every)}
    return found | {"read 512": speed(every, "-fa", 0, "-p", 512, "-n", 0)}


if __name__ == "__main__":
    main()
