"""What edits cost in the runtime's step: a head ablated, 16 texts with 16 edits, beside plain decoding.

    python -m scripts.study.bench_edits [MODEL] [--turns 60] [--against FOLDER]

Cases take turns, a few tokens each, so that what else the machine does meets all of them; printed are medians
over turns of the speed beside that of plain decoding in the same turn (1.00 is as fast). ``--against`` is
another checkout with its core in it, whose plain decoding takes turns too, in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import cutaway
from cutaway.inspect import runtime_edits
from cutaway.inspect.edits import Ablate, Add, Noise, Project, Scale, Swap

STEPS, PROMPT, BATCH = 8, 64, 16
CHILD = """
import sys, time, cutaway
engine = cutaway.load(sys.argv[1], engine="runtime").engine
state = engine.new_state()
engine.prefill(list(range(100, 164)), state)
for _ in sys.stdin:
    state.truncate(64)
    start = time.perf_counter()
    for id in range(8):
        engine.step(100 + id, state)
    print(time.perf_counter() - start, flush=True)
"""


def sixteen(lm: Any) -> list[Any]:
    """Sixteen edits of several kinds, at several layers."""
    vector = np.random.default_rng(0).normal(size=lm.config.width).tolist()
    heads, layers = lm.config.blocks[0].attention.heads, len(lm.config.blocks)
    kinds: list[Callable[[int], Any]] = [
        lambda layer: Ablate(layer, "head", layer % heads),
        lambda layer: Add(layer, vector, strength=0.1),
        lambda layer: Project(layer, vector),
        lambda layer: Scale(layer, "mlp", strength=0.5),
        lambda layer: Scale(name=f"blocks.{layer}.mlp.hidden", units=[3, 70], strength=2.0),
        lambda layer: Swap(layer, 0, heads - 1),
        lambda layer: Noise(layer, strength=0.1, seed=layer),
        lambda layer: Ablate(layer),
    ]
    return [kinds[n % len(kinds)](n * layers // BATCH) for n in range(BATCH)]


def cases(lm: Any) -> dict[str, Callable[[], None]]:
    """What is measured: a few tokens of each case after the same prompt."""
    engine, ids = lm.engine, list(range(100, 100 + PROMPT))

    def states(given: list[Any]) -> list[Any]:
        made = [engine.edited_state(runtime_edits.prepare(engine, one, PROMPT)) for one in given]
        for state in made:
            engine.prefill(ids, state)
        return made

    def decode(states: list[Any]) -> Callable[[], None]:
        def run() -> None:
            for state in states:
                state.truncate(PROMPT)
            for id in range(100, 100 + STEPS):
                if len(states) == 1:
                    engine.step(id, states[0])
                else:
                    engine.step_each([id] * len(states), states)

        return run

    layer = len(lm.config.blocks) * 3 // 4
    return {
        "plain": decode(states([()])),
        "a head ablated": decode(states([Ablate(layer, "head", 0)])),
        "16 texts": decode(states([()] * BATCH)),
        "16 texts, 16 edits": decode(states(sixteen(lm))),
    }


def measured(runs: dict[str, Callable[[], None]], turns: int, other: Any) -> dict[str, np.ndarray]:
    """Seconds of each turn of each case; ``other``: a process that decodes as another checkout does."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 2):  # the first two warm up
        for name in random.Random(turn).sample(list(runs), len(runs)):
            start = time.perf_counter()
            runs[name]()
            taken[name].append(time.perf_counter() - start)
        if other is not None:
            other.stdin.write("go\n")
            other.stdin.flush()
            taken.setdefault("another checkout", []).append(float(other.stdout.readline()))
    return {name: np.array(times[2:]) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--against", type=Path)
    asked = parser.parse_args()
    other = None
    if asked.against is not None:
        paths = [str(asked.against.resolve()), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        other = subprocess.Popen([sys.executable, "-c", CHILD, asked.model], cwd=asked.against, **pipes)
    lm = cutaway.load(asked.model, engine="runtime")
    found = measured(cases(lm), asked.turns, other)
    if other is not None:
        other.terminate()
    beside = {"a head ablated": "plain", "16 texts, 16 edits": "16 texts", "another checkout": "plain"}
    print(f"{asked.model}, {asked.turns} turns of {STEPS} tokens, load {os.getloadavg()[0]:.1f}")
    for name, times in found.items():
        plain = found[beside.get(name, name)]
        ratios = plain / times
        low, high = np.quantile(ratios, [0.25, 0.75])
        print(
            f"{name:>20} {1000 * np.median(times) / STEPS:8.2f} ms a step, speed {np.median(ratios):.3f} "
            f"(quartiles {low:.3f} to {high:.3f}) of {beside.get(name, name)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
