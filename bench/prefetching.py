"""Decoding by each way of asking the memory ahead (cutaway/runtime/prefetching.py), and which one is chosen.

    python -m bench.prefetching MODEL [--turns 6]

Tokens/s of one text with one thread and with all, of 16 texts, and of reading a prompt of 512 tokens. The
ways alternate, and the best turn counts, since a machine that others use only ever makes a turn slower. In
brackets: the fraction of the speed at which a loop that does nothing else reads as many bytes. Two minutes of
two cores for a model of a billion weights."""

from __future__ import annotations

import argparse

import cutaway
from cutaway import native
from cutaway.runtime import measure, prefetching
from cutaway.runtime.engine import RuntimeEngine
from cutaway.runtime.measure import Test

TOKENS, TEXTS = 8, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--turns", type=int, default=6)
    given = parser.parse_args()
    engine = cutaway.load(given.model, engine="runtime").engines.runtime
    assert isinstance(engine, RuntimeEngine)
    chosen, every = prefetching.used(), native.threads()
    one, all_of_them = threaded(engine, 1), threaded(engine, every)
    tests = {
        "1 thread": measure.prepared(one, Test(tokens=TOKENS)),
        f"{every} threads": measure.prepared(all_of_them, Test(tokens=TOKENS)),
        f"{TEXTS} texts": measure.prepared(all_of_them, Test(tokens=TOKENS, texts=TEXTS)),
        "read 512": measure.prepared(all_of_them, Test(prompt=512)),
    }
    best = {way: dict.fromkeys(tests, 0.0) for way in prefetching.WAYS}
    for _ in range(given.turns):
        for way, speeds in best.items():
            prefetching.use(way)
            for name, run in tests.items():
                speeds[name] = max(speeds[name], run())
    size = engine.packed.token_nbytes
    reads = {f"{n} thread{'s' * (n > 1)}": measure.reading(size, n) / size for n in dict.fromkeys((1, every))}
    print("| asked ahead |", " | ".join(tests), "|\n" + "|---" * (1 + len(tests)) + "|")
    for way, speeds in best.items():
        cells = [shown(speed, reads.get(name)) for name, speed in speeds.items()]
        print("|", f"**{way}**" if way == chosen else way, "|", " | ".join(cells), "|")
    print(f"In use here ({native.isa()}): {chosen}")


def threaded(engine: RuntimeEngine, threads: int) -> RuntimeEngine:
    """The same engine with so many threads."""
    view = engine.first_layers(engine.layers)
    view.threads = threads
    return view


def shown(speed: float, most: float | None) -> str:
    """Tokens/s, and their fraction of what reading allows."""
    return f"{speed:,.1f}" + (f" ({speed / most:.0%})" if most else "")


if __name__ == "__main__":
    main()
