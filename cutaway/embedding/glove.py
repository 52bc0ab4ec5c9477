"""GloVe (EMNLP 2014): vectors whose products are the logarithms of how often words co-occur.

    X_ij: how often j occurs within a window of i, each co-occurrence weighing 1 / distance
    J = sum f(X_ij) (w_i . c_j + b_i + d_j - log X_ij)^2 / 2,    f(x) = min(1, (x / x_max)^0.75)

Each count is fitted from both sides, in random order, by AdaGrad; a word's vector is w + c. X is symmetric,
so a pair of words is stored once. Counting needs at most ``memory`` bytes for any corpus: when the table is
full, it is written to a file and begun anew. At the end the files are merged into shuffled parts.

Here are the equations in numpy; the native core (native/embedding/glove.cpp) counts and fits in the same
order.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np

from cutaway import native
from cutaway.bounds import Bound, Bounded, Positive
from cutaway.embedding import corpus
from cutaway.embedding.corpus import Vocabulary
from cutaway.errors import UserError
from cutaway.native.embedding import BYTES_PER_PAIR, Cooccurrences, Dictionary, fit, table, whole
from cutaway.shapes import Float, Int

BATCH = 24  # pieces a thread takes between two looks at memory
STRETCH = 1 << 20  # counts fitted between two reports
POWER = np.float32(0.75)


@dataclass(frozen=True)
class GloveSettings(Bounded):
    """How to learn: ``most`` is x_max, past which counts weigh alike; ``memory`` is in bytes."""

    dim: Annotated[int, Bound(1, 10_000)] = 100
    window: Annotated[int, Bound(1, 1000)] = 10
    epochs: Annotated[int, Bound(1, 10_000)] = 25
    learning_rate: Annotated[float, Bound(0, 1, above=True)] = 0.05
    most: Positive = 100.0
    seed: int = 1
    memory: Annotated[int, Bound(1 << 20, 1 << 50)] = 1 << 30


@dataclass
class Model:
    """``tables``: w, c and the sums of their squared gradients [v d]; ``biases``: b, d and theirs [v]."""

    vocabulary: Vocabulary
    settings: GloveSettings
    tables: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    def vectors(self) -> Float[np.ndarray, "v d"]:
        """A vector for each word: the sum of its two."""
        return self.tables[0] + self.tables[1]


def begin(vocabulary: Vocabulary, settings: GloveSettings) -> Model:
    """Tables before learning: uniform in +-1/2d, squared gradients 1."""
    size, uniform = len(vocabulary), np.random.default_rng(settings.seed)
    tables = tuple(table(size, settings.dim) for _ in range(4))
    for one in tables[:2]:
        one[:] = (uniform.random(one.shape, np.float32) - np.float32(0.5)) / settings.dim
    for one in tables[2:]:
        whole(one)[:] = 1  # the padding too: it is divided by
    biases = [((uniform.random(size, np.float32) - np.float32(0.5)) / settings.dim) for _ in range(2)]
    return Model(
        vocabulary, settings, tables, (*biases, np.ones(size, np.float32), np.ones(size, np.float32))
    )


def cooccurrences(file: int, ids: dict[bytes, int], window: int) -> dict[tuple[int, int], float]:
    """How often words co-occur in an open file, by (smaller, larger) id.

    The reference implementation of native/embedding/glove.cpp's count.
    """
    found: dict[tuple[int, int], float] = {}
    for piece in range(corpus.pieces(file)):
        for line in corpus.lines(file, piece):
            known = [ids[word] for word in line if word in ids]
            for at, word in enumerate(known):
                for distance, other in enumerate(known[max(0, at - window) : at][::-1], 1):
                    key = (min(word, other), max(word, other))
                    both = 2 if word == other else 1  # a word beside itself counts from both sides
                    found[key] = found.get(key, 0.0) + both / distance
    return found


def loss(w: np.ndarray, c: np.ndarray, b: np.float32, d: np.float32, x: float, most: float) -> float:
    """J of one count seen from one side."""
    return float(weight(np.float32(x), most) * (w @ c + b + d - np.log(x)) ** 2 / 2)


def weight(x: np.float32, most: float) -> np.float32:
    """f(x): a rare co-occurrence weighs little, a frequent one at most as much as ``most`` of them."""
    return (x / np.float32(most)) ** POWER if x < most else np.float32(1)


def fit_reference(model: Model, pairs: Int[np.ndarray, "n 2"], counts: Float[np.ndarray, "n"]) -> None:
    """One pass of AdaGrad over counts, each from both sides; squares are added after the step."""
    for (i, j), x in zip(pairs.tolist(), counts, strict=True):
        for word, context in {(i, j): None, (j, i): None}:
            _fit_one(model, word, context, x)


def _fit_one(model: Model, i: int, j: int, x: np.float32) -> None:
    (W, C, W2, C2), (B, D, B2, D2), rate = (
        model.tables,
        model.biases,
        np.float32(model.settings.learning_rate),
    )
    gradient = weight(x, model.settings.most) * (W[i] @ C[j] + B[i] + D[j] - np.log(x))
    dw, dc = gradient * C[j], gradient * W[i]
    W[i] -= rate * dw / np.sqrt(W2[i])
    C[j] -= rate * dc / np.sqrt(C2[j])
    B[i] -= rate * gradient / np.sqrt(B2[i])
    D[j] -= rate * gradient / np.sqrt(D2[j])
    W2[i] += dw**2
    C2[j] += dc**2
    B2[i] += gradient**2
    D2[j] += gradient**2


@dataclass
class Counts:
    """Counts in shuffled parts, in a folder that is removed at the end of a with block.

    A part is a file of pairs int32 [n 2] and one of counts float32 [n].
    """

    folder: tempfile.TemporaryDirectory
    parts: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(self.parts)

    def __enter__(self) -> Counts:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def part(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """A part's pairs and counts."""
        name = Path(self.folder.name) / f"part-{number}"
        return np.load(f"{name}-pairs.npy"), np.load(f"{name}-counts.npy")

    def add(self, keys: np.ndarray, weights: np.ndarray) -> None:
        """Write one more part."""
        name = Path(self.folder.name) / f"part-{len(self.parts)}"
        pairs = np.stack([keys >> np.uint64(32), keys & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int32)
        np.save(f"{name}-pairs.npy", pairs)
        np.save(f"{name}-counts.npy", weights.astype(np.float32))
        self.parts.append(len(keys))


def count(path: Path, known: Vocabulary, settings: GloveSettings, threads: int) -> Counts:
    """How often a vocabulary's words co-occur in a file, merged and shuffled, in bounded memory."""
    counts = Counts(tempfile.TemporaryDirectory(prefix="cutaway-glove-"))
    words = [word.encode() for word in known.words]
    try:
        with corpus.opened(path) as file:
            runs = _runs if native.available() else _runs_reference
            spilled = list(runs(file, words, settings, threads, Path(counts.folder.name)))
        if not any(len(keys) for keys, _ in spilled):
            raise UserError(f"no two known words of {path} share a line, so there is nothing to learn from")
        _merge(spilled, counts, settings)
    except BaseException:
        counts.folder.cleanup()
        raise
    return counts


Run = tuple[np.ndarray, np.ndarray]  # keys uint64, sorted, and weights


def _runs(
    file: int, words: list[bytes], settings: GloveSettings, threads: int, folder: Path
) -> Iterator[Run]:
    with Dictionary(words) as dictionary, Cooccurrences(dictionary, settings.window, threads) as met:
        pieces, step = corpus.pieces(file), BATCH * threads
        for first in range(0, pieces, step):
            met.add(file, first, min(first + step, pieces))
            if met.nbytes() > settings.memory // 2:
                yield from (_spilled(run, folder) for run in met.take())
        yield from met.take()


def _runs_reference(
    file: int, words: list[bytes], settings: GloveSettings, threads: int, folder: Path
) -> Iterator[Run]:
    found = cooccurrences(file, {word: id for id, word in enumerate(words)}, settings.window)
    ordered = sorted(found)
    keys = np.array([(i << 32) | j for i, j in ordered], np.uint64)
    yield keys, np.array([found[key] for key in ordered], np.float64)


def _spilled(run: Run, folder: Path) -> Run:
    """A run on the disk, mapped."""
    number = len(list(folder.glob("run-*-keys.npy")))
    out = []
    for name, array in zip(("keys", "weights"), run, strict=True):
        np.save(folder / f"run-{number}-{name}.npy", array)
        out.append(np.load(folder / f"run-{number}-{name}.npy", mmap_mode="r"))
    return out[0], out[1]


def _merge(runs: list[Run], counts: Counts, settings: GloveSettings) -> None:
    """Add the runs' weights key by key, and deal the sums out at random to parts that fit in memory."""
    shuffle, limit = np.random.default_rng(settings.seed), settings.memory // 2 // BYTES_PER_PAIR
    total = sum(len(keys) for keys, _ in runs)
    decks = -(-total // limit)
    dealt: list[list[Path]] = [[] for _ in range(decks)]
    folder = Path(counts.folder.name)
    for number, (keys, weights) in enumerate(_ranges(runs, limit)):
        deck = shuffle.integers(decks, size=len(keys)) if decks > 1 else np.zeros(len(keys), np.int64)
        for which in range(decks):
            chosen = deck == which
            dealt[which].append(folder / f"deck-{which}-{number}.npz")
            np.savez(dealt[which][-1], keys=keys[chosen], weights=weights[chosen])
    for files in dealt:
        loaded = [np.load(file) for file in files]
        keys, weights = (np.concatenate([one[name] for one in loaded]) for name in ("keys", "weights"))
        order = shuffle.permutation(len(keys))
        counts.add(keys[order], weights[order])
        for one, file in zip(loaded, files, strict=True):
            one.close()
            file.unlink()


def _ranges(runs: list[Run], limit: int) -> Iterator[Run]:
    """Summed runs, a range of keys at a time: about ``limit`` entries of all runs together."""
    at = [0] * len(runs)
    while any(done < len(keys) for done, (keys, _) in zip(at, runs, strict=True)):
        step = max(1, limit // len(runs))
        stop = min(
            int(keys[min(done + step, len(keys)) - 1])
            for done, (keys, _) in zip(at, runs, strict=True)
            if done < len(keys)
        )
        ends = [int(np.searchsorted(keys, np.uint64(stop), side="right")) for keys, _ in runs]
        spans = [slice(max(a, 0), max(a, b)) for a, b in zip(at, ends, strict=True)]
        every = np.concatenate([keys[span] for (keys, _), span in zip(runs, spans, strict=True)])
        weights = np.concatenate([values[span] for (_, values), span in zip(runs, spans, strict=True)])
        unique, inverse = np.unique(every, return_inverse=True)
        yield unique, np.bincount(inverse, weights=weights, minlength=len(unique))
        at = [span.stop for span in spans]


def train(
    known: Vocabulary,
    counts: Counts,
    settings: GloveSettings,
    *,
    threads: int,
    watch: Callable[[corpus.Report, Model], None],
) -> Model:
    """Fit vectors to counts; ``watch`` is as in ``word2vec.train``."""
    model, done, start = begin(known, settings), 0, time.perf_counter()
    total = len(counts) * settings.epochs
    watch(corpus.Report(0, total, 0.0, 0), model)
    for epoch in range(settings.epochs):
        for number in range(len(counts.parts)):
            pairs, times = counts.part(number)
            for first in range(0, len(times), STRETCH):
                stretch = slice(first, first + STRETCH)
                _fit(model, pairs[stretch], times[stretch], threads)
                done += len(times[stretch])
                watch(corpus.Report(done, total, time.perf_counter() - start, epoch), model)
    return model


def _fit(model: Model, pairs: np.ndarray, counts: np.ndarray, threads: int) -> None:
    if not native.available():
        fit_reference(model, pairs, counts)
        return
    rate, most = model.settings.learning_rate, model.settings.most
    fit(model.tables, model.biases, pairs, counts, rate=rate, most=most, threads=threads)
