"""Perplexity of one file under the runtime, the PyTorch model and llama.cpp: same weights, same text, same
windows.

    python bench/perplexity.py [--llama-perplexity PATH] [--model MODEL] [TEXT ...]

Without texts: 100 KB of English (Jane Austen's novels from their beginning, fetched once) and 100 KB of code
(this Python's argparse.py and what follows it in the standard library's alphabet). Windows of 512 tokens, the
second half of each scored. "apart" is what the runtime's perplexity is above the PyTorch model's, with the
standard error of that difference, which is small since both are scored on the same tokens. Takes some ten
minutes a text."""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import cutaway
from cutaway import native, store
from cutaway.data import novels
from cutaway.evaluate import perplexity as scoring

SIZE = 100_000
SOURCES = sorted(Path(argparse.__file__).parent.glob("*.py"))


def english() -> str:
    """The first 100 KB of the novels."""
    chapters = sorted(novels.folder().glob("*.txt"))
    return _cut("\n\n".join(chapter.read_text("utf-8") for chapter in chapters[:20]))


def code() -> str:
    """100 KB of the standard library, from argparse on."""
    first = SOURCES.index(Path(argparse.__file__))
    return _cut("\n\n".join(source.read_text("utf-8") for source in SOURCES[first : first + 5]))


def _cut(text: str) -> str:
    return text.encode()[:SIZE].decode(errors="ignore")


def surprises(engine: scoring.AllLogits, ids: list[int], begin: int | None, name: str) -> np.ndarray:
    """-log p of every scored token."""

    def progress(done: int, total: int) -> None:
        print(f"\r{name}: {done} of {total} windows", end="", file=sys.stderr, flush=True)

    half, parts = scoring.WINDOW // 2, []
    for each in scoring.reported(scoring.windows(engine, ids, scoring.WINDOW, begin), progress):
        parts.append(scoring.surprises(scoring.scores(engine, each), each[half + 1 :]))
    print(file=sys.stderr)
    return np.concatenate(parts)


def peer(program: str, model: Path, text: str) -> tuple[float, float]:
    """llama-perplexity's figure and its standard error, on the same windows."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        command = [program, "-m", model, "-f", file.name, "-c", scoring.WINDOW, "-t", native.threads()]
        run = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    found = re.search(r"PPL = ([\d.]+) \+/- ([\d.]+)", run.stdout + run.stderr)
    assert found is not None, run.stderr[-500:]
    return float(found[1]), float(found[2])


def texts(paths: list[Path]) -> Iterator[tuple[str, str]]:
    if not paths:
        yield from (("English", english()), ("code", code()))
    for path in paths:
        yield path.name, path.read_text("utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Perplexity: the runtime, the PyTorch model, llama.cpp.")
    parser.add_argument("--llama-perplexity")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("texts", nargs="*", type=Path)
    asked = parser.parse_args()
    path = store.resolve(asked.model, pull=True)
    loaded = {name: cutaway.load(path, engine=name) for name in ("runtime", "pytorch")}
    print(f"{path.name}, {native.isa()}, windows of {scoring.WINDOW}, their second half scored")
    for name, text in texts(asked.texts):
        lm = loaded["runtime"]
        ids, begin = lm.tokenizer.encode(text), lm.tokenizer.bos if lm.tokenizer.add_bos else None
        seen = {which: surprises(lm.engine, ids, begin, which) for which, lm in loaded.items()}
        costs = {which: math.exp(values.mean()) for which, values in seen.items()}
        apart = seen["runtime"] - seen["pytorch"]
        error = scoring.error(apart.reshape(-1, scoring.WINDOW // 2 - 1))
        print(f"{name}: {len(text.encode()):,} bytes, {len(ids):,} tokens, {len(apart):,} scored")
        print(f"  pytorch    {costs['pytorch']:8.4f}")
        print(
            f"  runtime    {costs['runtime']:8.4f}   {100 * math.expm1(apart.mean()):+.3f}% "
            f"apart, +/- {100 * error:.3f}%"
        )
        if asked.llama_perplexity:
            value, error = peer(asked.llama_perplexity, path, text)
            above = 100 * (value / costs["pytorch"] - 1)
            print(f"  llama.cpp  {value:8.4f}   {above:+.3f}% apart; its own error of the mean {error:.4f}")


if __name__ == "__main__":
    main()
