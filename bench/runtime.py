"""The runtime beside llama.cpp: same file, same threads, in one run; and what limits each figure.

    python bench/runtime.py [--llama-bench PATH] [MODEL.gguf ...]

Each file is decoded (128 tokens, and 32 at depth 2,000), read (512 tokens), and decoded for eight texts at
once, by us and by llama-bench where its path is given (build it from llama.cpp with -DGGML_NATIVE=ON). Rounds
of both alternate and the best of each counts, since a machine that others use only ever makes a round slower.
"of read" is the bytes of weights and state that decoding reads a second, as a share of what reading memory
reaches here in the same run. The last lines are processes: seconds to the first token of `cutaway generate`,
and peak memory as a multiple of the file."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from cutaway import native, store
from cutaway.runtime.engine import RuntimeEngine
from cutaway.runtime.measure import figures, read_bandwidth
from cutaway.weights import load as reader

ROUNDS = 3


def ours(path: Path, threads: int) -> dict[str, float]:
    checkpoint = reader.read(path)
    return figures(RuntimeEngine(checkpoint.config, checkpoint.tensors, threads))


def theirs(program: str, path: Path, threads: int) -> dict[str, float]:
    """llama-bench's figures; eight texts are what llama-batched-bench, which lies beside it, says."""
    base = [program, "-m", str(path), "-t", str(threads), "-r", "1", "-o", "json"]
    out = {}
    for name, arguments in {
        "decode": ["-p", "0", "-n", "128"],
        "decode at 2000": ["-p", "0", "-n", "32", "-d", "2000"],
        "read 512": ["-p", "512", "-n", "0"],
    }.items():
        run = subprocess.run([*base, *arguments], capture_output=True, text=True, check=True)
        out[name] = json.loads(run.stdout)[0]["avg_ts"]
    batched = Path(program).with_name("llama-batched-bench")
    if batched.exists():
        command = [batched, "-m", path, "-t", threads, "-npp", "32", "-ntg", "32", "-npl", "8", "-c", "2048"]
        run = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
        row = next(line for line in run.stdout.splitlines() if line.startswith("|") and " 8 |" in line)
        out["8 texts"] = float(row.split("|")[8])
    return out


def start(path: Path) -> tuple[float, float]:
    """Seconds from the start of a process to its first token, and its peak memory over the file's size."""
    command = [sys.executable, "-m", "cutaway", "generate", "The capital of France is", "--model", str(path)]
    before = time.perf_counter()
    subprocess.run([*command, "--max-tokens", "1"], capture_output=True, check=True)
    seconds = time.perf_counter() - before
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-bench")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("models", nargs="*", type=Path)
    asked = parser.parse_args()
    threads = native.threads()
    for path in asked.models or [store.resolve("smollm2", pull=True)]:
        starts = [start(path) for _ in range(3)]
        bandwidth, best, peer = 0.0, {}, {}
        for _ in range(asked.rounds):
            bandwidth = max(bandwidth, read_bandwidth(threads))
            best = _better(best, ours(path, threads))
            if asked.llama_bench:
                peer = _better(peer, theirs(asked.llama_bench, path, threads))
        print(
            f"{path.name}, {native.isa()}, {threads} threads, load {os.getloadavg()[0]:.1f}, "
            f"memory read {bandwidth / 1e9:.1f} GB/s"
        )
        for name in ("decode", "decode at 2000", "read 512", "8 texts"):
            ratio = f"  {best[name] / peer[name]:5.2f}x" if name in peer else ""
            other = f"  {peer[name]:8.1f}" if name in peer else ""
            print(f"  {name:<16}{best[name]:8.1f} tokens/s{other}{ratio}")
        print(f"  of read         {100 * best['bytes a token'] * best['decode'] / bandwidth:8.0f} %")
        print(f"  to first token  {min(seconds for seconds, _ in starts):8.2f} s")
        print(f"  peak memory     {max(peak for _, peak in starts):8.2f} of the file")


def _better(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {name: max(value, one.get(name, 0.0)) for name, value in other.items()}


if __name__ == "__main__":
    main()
