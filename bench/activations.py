"""Activation datasets beside the runtime's prefill, transformers with a hook and TransformerLens: tokens/s.

    python -m bench.activations [--tokens 200000] [--turns 5] [--python PYTHON]

Writes `blocks.15.out` of SmolLM2 for English documents, read in pieces of up to 512 tokens, with `cutaway
activations`: its whole process counts, from start to end. Beside it, in turns over the same pieces: the
runtime's prefill, of all layers and of the 16 that are needed, with nothing kept; and the peers of
bench/activations_peers.py on every eighth piece, with their loading left out. Bars: 90 % of the prefill of
all layers, 3 times each peer. PYTHON is an interpreter that has transformers and transformer_lens. Each way
is measured in seconds and in seconds of processor time: on a machine that others use only the latter compare,
with CUTAWAY_THREADS=1, where no thread waits for another. Takes about 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import cutaway
from bench import corpus
from cutaway import native
from cutaway.runtime.engine import RuntimeEngine

NAME, LAYERS, PIECE = "blocks.15.out", 16, 512
OF_PREFILL, OF_PEERS = 0.9, 3.0
PEERS = Path(__file__).with_name("activations_peers.py")
EVERY = 8  # peers read one piece in so many


def documents(tokenizer: cutaway.Tokenizer, tokens: int) -> list[str]:
    """Texts of 200 to 8,000 characters, of so many tokens together."""
    text, draw, start, found = corpus.prose(), random.Random(0), 1_000_000, []
    while tokens > 0:
        found.append(text[start : start + int(200 * 40 ** draw.random())])
        start += len(found[-1])
        tokens -= tokenizer.count(found[-1])
    return found


class Took(NamedTuple):
    """Seconds on the clock, and of processors."""

    clock: float
    processors: float

    @classmethod
    def now(cls, whose: int = resource.RUSAGE_SELF) -> Took:
        used = resource.getrusage(whose)
        return cls(time.perf_counter(), used.ru_utime + used.ru_stime)

    def since(self, begun: Took) -> Took:
        return Took(self.clock - begun.clock, self.processors - begun.processors)


def prefill(engine: RuntimeEngine, pieces: Sequence[Sequence[int]]) -> Took:
    """What it takes to read pieces, 512 tokens a call as the datasets are read, and to keep nothing."""
    begun = Took.now()
    call: list[tuple[Sequence[int], Any]] = []
    room = PIECE
    for piece in pieces:
        state, start = engine.new_state(), 0
        while start < len(piece):
            part = piece[start : start + room]
            call.append((part, state))
            start, room = start + len(part), room - len(part)
            if not room:
                engine.read([part for part, _ in call], [state for _, state in call], [])
                call, room = [], PIECE
    if call:
        engine.read([part for part, _ in call], [state for _, state in call], [])
    return Took.now().since(begun)


def ours(model: Path, texts: Sequence[str], folder: Path) -> tuple[int, Took]:
    """Tokens, and what the command's whole process takes."""
    source = folder.with_suffix(".jsonl")
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    command = ["activations", source, "--names", NAME, "--context", PIECE, "--output", folder]
    command += ["--model", model, "--json"]
    begun = Took.now(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
        [sys.executable, "-m", "cutaway", *map(str, command)], capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout)["tokens"], Took.now(resource.RUSAGE_CHILDREN).since(begun)


class Peer:
    """A peer's process, which reads pieces when it is asked to, and is idle in the turns of others."""

    def __init__(self, python: str, name: str, model: Path, threads: int) -> None:
        self.process = subprocess.Popen(
            [python, str(PEERS), name, str(model), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = self._line()

    def took(self, pieces: Sequence[Sequence[int]], folder: Path) -> Took:
        """What it takes to read pieces and to write their rows."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"pieces": pieces, "folder": str(folder)}) + "\n")
        self.process.stdin.flush()
        return Took(*map(float, self._line().split()))

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a peer ended by itself: --python needs transformers and transformer_lens")
        return line.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--python", default=sys.executable)
    asked = parser.parse_args()
    path, threads = cutaway.store.resolve("smollm2", pull=True), native.threads()
    lm = cutaway.load(path, engine="runtime")
    whole = lm.engine
    assert isinstance(whole, RuntimeEngine)
    needed = whole.first_layers(LAYERS)
    texts = documents(lm.tokenizer, asked.tokens)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        cutaway.load(path, engine="pytorch").save(home / "model", format="safetensors")
        peers = {
            name: Peer(asked.python, name, home / "model", threads)
            for name in ("transformers", "transformers bfloat16", "transformer_lens")
        }
        prefill(whole, [lm.ids(texts[0])[:PIECE]])  # memory is touched, threads are awake
        tokens: defaultdict[str, int] = defaultdict(int)
        seconds: defaultdict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
        for turn in range(asked.turns):
            some = texts[turn :: asked.turns]
            ids = [lm.ids(text) for text in some]
            pieces = [row[at : at + PIECE] for row in ids for at in range(0, len(row), PIECE)]
            few = pieces[::EVERY]
            took = {f"prefill, {len(lm.config.blocks)} layers": (pieces, prefill(whole, pieces))}
            took[f"prefill, {LAYERS} layers"] = pieces, prefill(needed, pieces)
            count, taken = ours(path, some, home / f"acts{turn}")
            assert count == sum(map(len, pieces))
            took["cutaway activations"] = pieces, taken
            took |= {name: (few, peer.took(few, home / "theirs")) for name, peer in peers.items()}
            for name, (read, each) in took.items():
                tokens[name] += sum(map(len, read))
                seconds[name] += each
            report(f"turn {turn + 1}", tokens, seconds, threads)
    for name, peer in peers.items():
        print(f"{name}: {peer.version}")
        peer.process.kill()


def report(title: str, tokens: Mapping[str, int], seconds: Mapping[str, np.ndarray], threads: int) -> None:
    """Prints each way's tokens/s so far, by the clock and by processor time, and our multiple of it."""
    mine = tokens["cutaway activations"] / seconds["cutaway activations"]
    print(f"{title}: {NAME} of SmolLM2, {native.isa()}, {threads} threads, load {os.getloadavg()[0]:.1f}")
    print(f"  {'':<24}{'tokens':>9}{'tokens/s':>10}{'ours':>7}{'a processor second':>20}{'ours':>7}")
    for n, (name, taken) in enumerate(seconds.items()):
        rate = tokens[name] / taken
        bar = (f"   bar {OF_PREFILL}" if n == 0 else "") if n < 3 else f"   bar {OF_PEERS:g}"
        line = f"  {name:<24}{tokens[name]:>9,}{rate[0]:>10,.0f}{mine[0] / rate[0]:>6.2f}x"
        print(line + f"{rate[1]:>20,.0f}{mine[1] / rate[1]:>6.2f}x{bar}", flush=True)


if __name__ == "__main__":
    main()
