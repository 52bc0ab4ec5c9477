"""Sentences a second and memory, side by side with sentence-transformers: `python bench/sentences.py`.

All read the same MiniLM, with the same threads and batch: sentence-transformers, the PyTorch model, and the
runtime with float weights, Q8_0 and Q4_K_M. Turns alternate, and the best of each counts, by the clock and by
processor time, which a busy machine disturbs less. Memory is the most that a process of its own took. The
sentences are those of Jane Austen's novels. Needs `pip install sentence-transformers`.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import cutaway
from cutaway import store
from cutaway.data import novels
from cutaway.weights import load, save
from cutaway.weights.quantize import quantized

TYPES = ("Q8_0", "Q4_K_M")
PEER, MODEL, FLOATS = "sentence-transformers", "PyTorch model", "F32"
Way = Callable[[list[str]], np.ndarray]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sentences", type=int, default=1000)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--turns", type=int, default=3)
    options.add_argument("--only", help=argparse.SUPPRESS)  # a way, in a process of its own, and its file
    given = options.parse_args()
    os.environ["CUTAWAY_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(given.threads)
    texts = sentences(given.sentences)
    if given.only:
        name, path = given.only.split("=")
        way(name, path, given.batch, given.threads)(texts)
        print(
            re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]
        )  # kB, of this program alone
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {name: str(store.resolve("minilm")) for name in (PEER, MODEL, FLOATS)}
        for type in TYPES:
            files[type] = str(Path(folder) / f"{type}.gguf")
            save.write_checkpoint(
                files[type], quantized(load.read_checkpoint(store.resolve("minilm")), type).checkpoint, "gguf"
            )
        compared(files, texts, given)


def compared(files: dict[str, str], texts: list[str], given: argparse.Namespace) -> None:
    """A line for each way: speed and its ratio to the peer's, the cosine to its vectors, and memory."""
    ways = {name: way(name, path, given.batch, given.threads) for name, path in files.items()}
    best, made = dict.fromkeys(ways, (np.inf, np.inf)), {}
    for each in ways.values():
        each(texts[: given.batch])
    for turn in range(given.turns):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            start, spent = time.perf_counter(), time.process_time()
            made[name] = ways[name](texts)
            took = time.perf_counter() - start, time.process_time() - spent
            best[name] = tuple(map(min, best[name], took))
    titles = ("sentences/s", 12), ("ratio", 7), ("/cpu-s", 9), ("ratio", 7), ("least cosine", 14), ("mean", 9)
    print(" " * 24 + "".join(f"{title:>{size}}" for title, size in (*titles, ("MB", 6))))
    for name, (seconds, spent) in best.items():
        cosine = (made[name] * made[PEER]).sum(axis=1)
        again = [sys.executable, __file__, f"--only={name}={files[name]}", f"--sentences={given.sentences}"]
        done = subprocess.run(
            [*again, f"--batch={given.batch}", f"--threads={given.threads}"], capture_output=True, text=True
        )
        print(
            f"{name:<24}{len(texts) / seconds:12.1f}{best[PEER][0] / seconds:7.2f}{len(texts) / spent:9.1f}"
            f"{best[PEER][1] / spent:7.2f}{cosine.min():14.5f}{cosine.mean():9.5f}"
            f"{int(done.stdout.split()[-1]) // 1000:6}"
        )


def way(name: str, path: str, batch: int, threads: int) -> Way:
    """What makes vectors of length 1 of texts."""
    if name in (PEER, MODEL):
        import torch

        torch.set_num_threads(threads)
    if name == PEER:
        from sentence_transformers import SentenceTransformer

        peer = SentenceTransformer(path, device="cpu")
        peer.max_seq_length = 512  # as many as the model reads
        return lambda texts: peer.encode(texts, batch_size=batch, normalize_embeddings=True)
    lm = cutaway.load(path, engine="pytorch" if name == MODEL else "runtime")
    return lambda texts: lm.embed(texts, batch=batch)


def sentences(count: int) -> list[str]:
    """So many sentences, evenly from the novels."""
    chapters = (path.read_text("utf-8") for path in sorted(novels.folder().iterdir()))
    found = [s for text in chapters for s in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if s]
    return found[:: max(1, len(found) // count)][:count]


if __name__ == "__main__":
    main()
