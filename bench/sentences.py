"""Sentences a second, side by side with sentence-transformers: `python bench/sentences.py`.

Both read the same MiniLM folder, with the same threads and batch, and sort by length; turns alternate, and
the best of each counts. The sentences are those of Jane Austen's novels. Needs `pip install
sentence-transformers`.
"""

import argparse
import re
import time

import numpy as np
import torch

import cutaway
from cutaway import store
from cutaway.data import novels


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sentences", type=int, default=1000)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--turns", type=int, default=3)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    texts = sentences(given.sentences)
    lm = cutaway.load("minilm")
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(store.resolve("minilm")), device="cpu")
    peer.max_seq_length = lm.config.context
    ways = {
        "cutaway": lambda: lm.embed(texts, batch=given.batch),
        "sentence-transformers": lambda: peer.encode(
            texts, batch_size=given.batch, normalize_embeddings=True
        ),
    }
    best, made = dict.fromkeys(ways, np.inf), {}
    for way in ways.values():
        way()
    for turn in range(given.turns):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            made[name] = ways[name]()
            best[name] = min(best[name], time.perf_counter() - start)
    for name, seconds in best.items():
        print(f"{name:<24}{len(texts) / seconds:8.1f} sentences/s")
    print(f"{'ratio':<24}{best['sentence-transformers'] / best['cutaway']:8.3f}")
    print(f"{'furthest apart':<24}{np.abs(made['cutaway'] - made['sentence-transformers']).max():8.1e}")
    start = time.perf_counter()
    for text in texts:
        lm.ids(text)
    print(f"{'of it, our tokenizer':<24}{(time.perf_counter() - start) / best['cutaway']:8.1%}")


def sentences(count: int) -> list[str]:
    """So many sentences, evenly from the novels."""
    chapters = (path.read_text("utf-8") for path in sorted(novels.folder().iterdir()))
    found = [s for text in chapters for s in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if s]
    return found[:: max(1, len(found) // count)][:count]


if __name__ == "__main__":
    main()
