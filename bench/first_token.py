"""From the start of a process to a model's first token, beside llama-cli: file in the page cache, and not.

    python bench/first_token.py [--llama-cli PATH] [--rounds N] MODEL.gguf ...

"first" is seconds from the start of `cutaway generate` to the first byte of its text, "end" to the end of
the process, "processor" what it took of all threads, user and system; llama-cli writes before it reads, so
that only its end is known. Both write one token after the same prompt, in turns; medians of the rounds,
and in brackets the best. Warm: the file was just read. Cold: the system is asked to drop it (posix_fadvise; a
virtual machine's host may keep it), and "dropped" is how much of it then was not in memory. The bytecode is
compiled, as an installed package has it. A round takes five to twenty seconds a file."""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cutaway import native

PROMPT = "The capital of France is"
CHUNK = 8 << 20  # bytes


def warm(path: Path) -> None:
    """Reads the file, so that the system has it in memory."""
    with open(path, "rb", buffering=0) as file:
        while file.read(CHUNK):
            pass


def cold(path: Path) -> None:
    """Asks the system to forget the file's bytes."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def in_memory(path: Path) -> float:
    """The fraction of the file's pages that the system has in memory."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        found = np.zeros(-(-len(mapping) // mmap.PAGESIZE), np.uint8)
        whole = np.frombuffer(mapping, np.uint8)
        failed = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(whole.ctypes.data),
            ctypes.c_size_t(whole.size),
            ctypes.c_void_p(found.ctypes.data),
        )
        del whole
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return float((found & 1).mean())


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds to the first byte that a process writes, to its end, and of processor time."""
    before = os.times()
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - start
        _, complaint = process.communicate()
    end = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{command[0]}: {complaint.decode(errors='replace')[-500:]}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return first, end, used


def shown(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):6.2f} ({min(seconds):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-cli", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=native.threads())
    parser.add_argument("models", nargs="+", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as bytecode:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = bytecode
        for path in asked.models:
            ours = [sys.executable, "-m", "cutaway", "generate", PROMPT, "--model", str(path)]
            peers = {"cutaway": [*ours, "--max-tokens", "1", "--threads", str(asked.threads)]}
            if asked.llama_cli:
                theirs = [str(asked.llama_cli), "-m", str(path), "-t", str(asked.threads), "-c", "512"]
                peers["llama-cli"] = [*theirs, "-n", "1", "-st", "-p", PROMPT]
            timed(peers["cutaway"], environment)  # bytecode and the vocabulary are compiled
            for state, prepare in (("warm", warm), ("cold", cold)):
                runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in peers}
                kept = []
                for _ in range(asked.rounds):
                    for name, command in peers.items():
                        prepare(path)
                        kept.append(in_memory(path))
                        runs[name].append(timed(command, environment))
                note = f", {1 - max(kept):.0%} dropped" if state == "cold" else ""
                print(f"{path.name}, {state}{note}, load {os.getloadavg()[0]:.1f}")
                for name, found in runs.items():
                    first, end, used = (list(column) for column in zip(*found, strict=True))
                    own = f"first {shown(first)}  " if name == "cutaway" else ""
                    print(f"  {name:<10} {own}end {shown(end)}  processor {shown(used)} s", flush=True)


if __name__ == "__main__":
    main()
