"""Word vectors by prediction: a word is what is found around it.

Skip-gram lets each word of a window predict the word in its middle, CBOW their mean (1301.3781); fastText
lets the sum of a word's subwords predict the words around it (1607.04606). Right words are classified from
wrong ones in one of two ways (1310.4546), both logistic regressions on outputs Y with labels t:

    negative sampling: Y is the right word, t = 1, and k words of the noise, t = 0
    hierarchical softmax: Y are the inner nodes on the path to the right word, t = 1 where it goes left

    loss = -sum t log sigmoid(X Y') + (1 - t) log sigmoid(-X Y')
    E = rate (t - sigmoid(X Y')),  X += E Y,  Y += E' X

Skip-gram's X holds all words of a window, against one draw of negatives for all of them (1604.04661); the
paper draws for each. The noise itself is the same, and docs/results/embedding.md shows that quality is.

Here are the equations in numpy. The native core (native/embedding/word2vec.cpp) does the same, with the
same draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from cutaway import native
from cutaway.bounds import Bound, Bounded, Count, Fraction
from cutaway.embedding import corpus, huffman, sampling, subwords
from cutaway.embedding.corpus import Report, Vocabulary
from cutaway.embedding.sampling import Random, below
from cutaway.errors import UserError
from cutaway.native.embedding import Dictionary, Draws, Learner, table
from cutaway.shapes import Float, Int

Kind = Literal["skipgram", "cbow", "fasttext"]
RATES = {"skipgram": 0.025, "cbow": 0.075, "fasttext": 0.05}  # CBOW's is larger: its gradient is shared
BATCH = 24  # pieces a thread takes between two reports: about a third of a second
SENTENCE = 1000  # words kept of a line; a longer one is cut


@dataclass(frozen=True)
class Word2VecSettings(Bounded):
    """How to learn; ``negative`` 0 is hierarchical softmax.

    ``sample`` is subsampling's t, 0 for none; the learning rate falls linearly to a ten-thousandth; ``least``
    to ``most`` are the lengths of fastText's n-grams.
    """

    kind: Kind = "skipgram"
    dim: Annotated[int, Bound(1, 10_000)] = 100
    window: Annotated[int, Bound(1, 1000)] = 5
    negative: Annotated[int, Bound(0, 1000)] = 5
    epochs: Annotated[int, Bound(1, 10_000)] = 5
    sample: Fraction = 1e-3
    learning_rate: Annotated[float, Bound(0, 1, above=True)] | None = None
    seed: int = 1
    least: Count = 3
    most: Annotated[int, Bound(1, 100)] = 6
    buckets: Annotated[int, Bound(1, (1 << 31) - 1)] = 2_000_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least > self.most:
            raise UserError(f"the shortest n-gram has {self.least} characters, and the longest {self.most}")

    @property
    def start(self) -> float:
        """The learning rate at the beginning."""
        return RATES[self.kind] if self.learning_rate is None else self.learning_rate


@dataclass
class Model:
    """The weights in training: ``input`` [rows d] and ``output`` [v d] vectors, float32, for a vocabulary."""

    vocabulary: Vocabulary
    settings: Word2VecSettings
    draws: Draws
    input: np.ndarray
    output: np.ndarray
    subwords: subwords.Subwords | None

    def vectors(self) -> Float[np.ndarray, "v d"]:
        """A vector for each word: its input row, of fastText the mean of its rows."""
        if self.subwords is None:
            return np.ascontiguousarray(self.input)
        ends = self.draws.piece_ends
        begins = np.concatenate([[0], ends[:-1]])
        sums = np.zeros((len(ends), self.settings.dim), np.float32)
        for word, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            sums[word] = self.input[self.draws.piece_rows[begin:end]].mean(axis=0)
        return sums

    def total(self) -> int:
        """Words that all epochs together pass."""
        return int(self.vocabulary.counts.sum()) * self.settings.epochs


def begin(vocabulary: Vocabulary, settings: Word2VecSettings) -> Model:
    """Tables before learning: inputs uniform in +-1/2d, outputs zero, as in the authors' program."""
    size = len(vocabulary)
    none = np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32)
    chance, other, paths, pieces, rows = none[2], none[1], huffman.Paths(*none), none[:2], size
    if settings.negative:
        chance, other = sampling.noise(vocabulary.counts)
    else:
        paths = huffman.paths(vocabulary.counts)
    parts = None
    if settings.kind == "fasttext":
        parts, *pieces = subwords.subwords(vocabulary.words, settings.least, settings.most, settings.buckets)
        rows += len(parts.used)
    draws = Draws(sampling.kept(vocabulary.counts, settings.sample), chance, other, *paths, *pieces)
    input = table(rows, settings.dim)
    uniform = np.random.default_rng(settings.seed)
    for first in range(0, rows, 1 << 16):
        part = input[first : first + (1 << 16)]
        part[:] = (uniform.random(part.shape, np.float32) - np.float32(0.5)) / settings.dim
    return Model(vocabulary, settings, draws, input, table(size, settings.dim), parts)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def loss(
    X: Float[np.ndarray, "m d"], Y: Float[np.ndarray, "n d"], t: np.ndarray, weight: np.ndarray
) -> float:
    """The loss of a step: the logistic loss of m inputs on n outputs with labels t [n]."""
    right = np.where(t == 1, 1, -1) * (X @ Y.T)
    return float((weight * np.log1p(np.exp(-right))).sum())


def change(
    X: Float[np.ndarray, "m d"], Y: Float[np.ndarray, "n d"], t: np.ndarray, weight: np.ndarray, rate: float
) -> tuple[Float[np.ndarray, "m d"], Float[np.ndarray, "n d"]]:
    """The update of X and Y in a step: minus ``rate`` times the loss's gradient."""
    E = np.float32(rate) * weight * (t - sigmoid(X @ Y.T))
    return E @ Y, E.T @ X


def learn(model: Model, file: int, number: int, piece: int, done: int) -> int:
    """Learn from one piece of epoch ``number``: native/embedding/word2vec.cpp on one thread."""
    random = Random(Random(model.settings.seed ^ (number << 40) ^ piece).next())
    ids = {word.encode(): id for id, word in enumerate(model.vocabulary.words)}
    for sentence, passed in _sentences(corpus.lines(file, piece), ids, model.draws.keep, random):
        left = np.float32(1) - np.float32(done / model.total())
        start = np.float32(model.settings.start)
        _sentence(model, sentence, random, float(max(start * left, start * np.float32(1e-4))))
        done += passed
    return done


def _sentences(
    lines: Iterator[list[bytes]], ids: dict[bytes, int], keep: np.ndarray, random: Random
) -> Iterator[tuple[list[int], int]]:
    """A line's words that are known and kept, and how many known words were passed."""
    for line in lines:
        sentence, passed = [], 0
        for word in line:
            id = ids.get(word)
            if id is None:
                continue
            passed += 1
            if keep[id] >= 1 or sampling.unit(random.next()) < keep[id]:
                sentence.append(id)
            if len(sentence) == SENTENCE:
                yield sentence, passed
                sentence, passed = [], 0
        yield sentence, passed


def _sentence(model: Model, sentence: list[int], random: Random, rate: float) -> None:
    for at in range(len(sentence)):
        if len(sentence) < 2:
            return
        reach = 1 + below(random.next(), model.settings.window)
        around = sentence[max(0, at - reach) : at] + sentence[at + 1 : at + 1 + reach]
        STEPS[model.settings.kind](model, sentence[at], around, random, rate)


def _skipgram(model: Model, word: int, around: list[int], random: Random, rate: float) -> None:
    Y, t, weight = _outputs(model, word, _negatives(model, random))
    dX, dY = change(model.input[around], model.output[Y], t, weight, rate)
    np.add.at(model.output, Y, dY)
    np.add.at(model.input, around, dX)


def _cbow(model: Model, word: int, around: list[int], random: Random, rate: float) -> None:
    """Each word of the window gets its part of the mean's gradient (2012.15332)."""
    Y, t, weight = _outputs(model, word, _negatives(model, random))
    part = np.float32(1 / len(around))
    dX, dY = change(model.input[around].sum(axis=0, keepdims=True) * part, model.output[Y], t, weight, rate)
    np.add.at(model.output, Y, dY)
    np.add.at(model.input, around, dX * part)


def _fasttext(model: Model, word: int, around: list[int], random: Random, rate: float) -> None:
    """Each subword takes an equal part of the step, so that their sum moves by one step of the rate."""
    ends = model.draws.piece_ends
    rows = model.draws.piece_rows[ends[word - 1] if word else 0 : ends[word]]
    drawn = [_negatives(model, random) for _ in around]
    X = model.input[rows].sum(axis=0, keepdims=True)
    step = np.zeros_like(X)
    for other, negatives in zip(around, drawn, strict=True):
        Y, t, weight = _outputs(model, other, negatives)
        dX, dY = change(X, model.output[Y], t, weight, rate)
        np.add.at(model.output, Y, dY)
        step += dX
    np.add.at(model.input, rows, step / np.float32(len(rows)))


STEPS = {"skipgram": _skipgram, "cbow": _cbow, "fasttext": _fasttext}


def _negatives(model: Model, random: Random) -> list[int]:
    chance, other = model.draws.chance, model.draws.other
    return [sampling.draw(random, chance, other) for _ in range(model.settings.negative)]


def _outputs(
    model: Model, word: int, negatives: list[int]
) -> tuple[Int[np.ndarray, "n"], np.ndarray, np.ndarray]:
    """Rows of the output table, their labels and weights: the word itself is no noise, and weighs nothing."""
    draws = model.draws
    if not model.settings.negative:
        path = slice(draws.path_ends[word - 1] if word else 0, draws.path_ends[word])
        nodes = draws.path_nodes[path]
        return nodes, draws.path_labels[path], np.ones(len(nodes), np.float32)
    t = np.array([1] + [0] * len(negatives), np.float32)
    weight = np.array([1] + [other != word for other in negatives], np.float32)
    return np.array([word, *negatives]), t, weight


Watch = Callable[[Report, Model], None]


def train(
    path: Path,
    known: Vocabulary,
    settings: Word2VecSettings,
    *,
    threads: int | None = None,
    watch: Watch = lambda *_: None,
) -> Model:
    """Learn from a corpus: one thread gives the same vectors each time, several give others each time.

    ``watch`` is called with a report and the model; what it raises ends training, and the model it saw last
    keeps what was learned.
    """
    threads = native.threads() if threads is None else threads
    if threads < 1:
        raise UserError(f"{threads} threads cannot train; use at least 1")
    model = begin(known, settings)
    watch(Report(0, model.total(), 0.0, 0), model)
    (_native if native.available() else _reference)(path, model, threads, watch)
    return model


def _native(path: Path, model: Model, threads: int, watch: Watch) -> None:
    settings, start = model.settings, time.perf_counter()
    with corpus.opened(path) as file, Dictionary([word.encode() for word in model.vocabulary.words]) as words:
        learner = Learner(
            *(words, model.input, model.output, model.draws),
            **{name: getattr(settings, name) for name in ("kind", "window", "negative", "seed")},
            total=model.total(),
            rate=settings.start,
            least_rate=settings.start * 1e-4,
        )
        done, pieces = 0, corpus.pieces(file)
        for epoch in range(settings.epochs):
            for first in range(0, pieces, BATCH * threads):
                last = min(first + BATCH * threads, pieces)
                done = learner.learn(file, epoch, first, last, done, threads)
                watch(Report(done, model.total(), time.perf_counter() - start, epoch), model)


def _reference(path: Path, model: Model, threads: int, watch: Watch) -> None:
    done, start = 0, time.perf_counter()
    with corpus.opened(path) as file:
        for epoch in range(model.settings.epochs):
            for piece in range(corpus.pieces(file)):
                done = learn(model, file, epoch, piece, done)
                watch(Report(done, model.total(), time.perf_counter() - start, epoch), model)
