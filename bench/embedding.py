"""Word vectors beside gensim's, in one run on one corpus: words a second, quality and memory.

    python bench/embedding.py FOLDER [epochs] [seeds]      (FOLDER: bench/embedding_corpus.py makes its
    corpus.txt)

Skip-gram, dim 100, window 5, 5 negatives, 2 threads, for each seed. Seconds are of everything from the file
to the vectors: counting words and all epochs, each reading the file again. Each training is a process of its
own, the two taking turns; its peak memory is the process's. Quality is computed by the same code for both.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

THREADS = 2


def ours(path: Path, epochs: int, seed: int) -> tuple[list[str], np.ndarray, int]:
    """Words, vectors, and how many words an epoch passes."""
    from cutaway.embedding import corpus, word2vec

    known = corpus.vocabulary(path, 5, THREADS)
    model = word2vec.train(path, known, word2vec.Word2VecSettings(epochs=epochs, seed=seed), threads=THREADS)
    return list(known.words), model.vectors(), int(known.counts.sum())


def gensim(path: Path, epochs: int, seed: int) -> tuple[list[str], np.ndarray, int]:
    """The same, of gensim reading lines."""
    from gensim.models import Word2Vec
    from gensim.models.word2vec import LineSentence

    settings = {"vector_size": 100, "window": 5, "negative": 5, "sg": 1, "min_count": 5, "sample": 1e-3}
    model = Word2Vec(LineSentence(str(path)), workers=THREADS, epochs=epochs, seed=seed, **settings)
    words = model.wv.index_to_key
    return words, model.wv.vectors, sum(model.wv.get_vecattr(word, "count") for word in words)


WHO = {"gensim": gensim, "ours": ours}


def one(who: str, path: Path, epochs: int, seed: int) -> None:
    """Train in this process and print what it took and gave."""
    from cutaway.embedding import evaluate
    from cutaway.embedding.vectors import Vectors

    start, cpu = time.perf_counter(), time.process_time()
    words, table, passed = WHO[who](path, epochs, seed)
    seconds, busy = time.perf_counter() - start, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    vectors = Vectors(words, table)
    scores = {
        name: evaluate.similarity(vectors, evaluate.find(name)).correlation for name in ("wordsim", "simlex")
    }
    scores["analogy"] = evaluate.analogies(vectors, evaluate.find("analogy")).accuracy
    figures = {
        "rate": epochs * passed / seconds,
        "cpu_rate": epochs * passed / busy,
        "memory": memory * 1024,
        **scores,
    }
    print(json.dumps(figures))


def main() -> None:
    path = Path(sys.argv[1]) / "corpus.txt"
    epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    seeds = range(1, 1 + int(sys.argv[3]) if len(sys.argv) > 3 else 4)
    found: dict[str, list[dict[str, float]]] = {who: [] for who in WHO}
    print(f"{path.stat().st_size / 1e6:.1f} MB, {epochs} epochs, {THREADS} threads")
    print("           words/s  words/CPU s   peak MB   WordSim-353  SimLex-999  analogies")
    for seed in seeds:
        for who in WHO:
            command = [sys.executable, __file__, "one", who, str(path), str(epochs), str(seed)]
            found[who].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
            show(f"{who} {seed}", found[who][-1])
    average = {
        who: {name: mean(run[name] for run in runs) for name in runs[0]} for who, runs in found.items()
    }
    for who, numbers in average.items():
        show(f"{who} mean", numbers)
    ratio = {name: average["ours"][name] / average["gensim"][name] for name in ("rate", "cpu_rate")}
    print(f"ours over gensim: {ratio['rate']:.2f} by the clock, {ratio['cpu_rate']:.2f} by processor time")


def show(name: str, figures: dict[str, float]) -> None:
    """One line of the table."""
    speed = f"{figures['rate']:9,.0f}  {figures['cpu_rate']:11,.0f}  {figures['memory'] / 1e6:8.0f}"
    print(
        f"{name:9}{speed}   {figures['wordsim']:11.4f}  {figures['simlex']:10.4f}  {figures['analogy']:9.4f}",
        flush=True,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
