"""Chapter 5, embeddings: rows of a table, likeness, neighbours, PPMI, a step of skip-gram, analogies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from cutaway.course.exercise import Arguments, Exercise, Mistake, Property
from cutaway.embedding.word2vec import sigmoid

TITLE = "Embeddings"
QUESTION = "How can a list of numbers stand for a word, and where do the numbers come from?"
Pair = tuple[str, str]


# ---- 5.1 ---------------------------------------------------------------------------------------------------


def _look_up(table: np.ndarray, ids: list[int]) -> np.ndarray:
    return table[ids]


def _one_hot(table: np.ndarray, ids: list[int]) -> np.ndarray:
    return np.eye(len(table))[ids]


def _table_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield np.arange(6.0).reshape(3, 2), [2, 0, 2]
    yield rng.normal(size=(50, 8)), [int(one) for one in rng.integers(0, 50, 7)]
    yield rng.normal(size=(5, 5)), [1, 3]


# ---- 5.2 ---------------------------------------------------------------------------------------------------


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(a, axis=-1)[:, None] * np.linalg.norm(b, axis=-1)
    return a @ b.T / lengths


def _cosines_of_one_side(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a @ b.T / np.linalg.norm(a, axis=-1)[:, None]


def _cosines_of_squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a @ b.T / ((a * a).sum(-1)[:, None] * (b * b).sum(-1))


def _cosine_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield np.array([[1.0, 0.0]]), np.array([[0.0, 2.0], [3.0, 0.0], [-1.0, 0.0]])
    yield rng.normal(size=(4, 16)), 5 * rng.normal(size=(6, 16))


# ---- 5.3 ---------------------------------------------------------------------------------------------------


def _neighbours(words: list[str], window: int) -> dict[Pair, int]:
    counts: dict[Pair, int] = {}
    for at, word in enumerate(words):
        for other in range(max(at - window, 0), min(at + window + 1, len(words))):
            if other != at:
                counts[word, words[other]] = counts.get((word, words[other]), 0) + 1
    return counts


def _neighbours_ahead(words: list[str], window: int) -> dict[Pair, int]:
    counts: dict[Pair, int] = {}
    for at, word in enumerate(words):
        for other in words[at + 1 : at + window + 1]:
            counts[word, other] = counts.get((word, other), 0) + 1
    return counts


def _neighbours_and_itself(words: list[str], window: int) -> dict[Pair, int]:
    counts = _neighbours(words, window)
    for word in words:
        counts[word, word] = counts.get((word, word), 0) + 1
    return counts


def _neighbours_less_one(words: list[str], window: int) -> dict[Pair, int]:
    return _neighbours(words, window - 1)


def _neighbour_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield ["a", "b", "c"], 1
    yield ["the", "cat", "sat", "on", "the", "mat"], 2
    yield [str(one) for one in rng.choice(list("abcd"), 30)], 3


# ---- 5.4 ---------------------------------------------------------------------------------------------------


def _ppmi(counts: np.ndarray) -> np.ndarray:
    total = counts.sum()
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(counts > 0, np.maximum(np.log(counts / expected), 0), 0.0)


def _pmi_not_positive(counts: np.ndarray) -> np.ndarray:
    total = counts.sum()
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / total
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(counts > 0, np.log(counts / expected), 0.0)


def _ppmi_in_bits(counts: np.ndarray) -> np.ndarray:
    return _ppmi(counts) / math.log(2)


def _ppmi_without_total(counts: np.ndarray) -> np.ndarray:
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(counts > 0, np.maximum(np.log(counts / expected), 0), 0.0)


def _ratios(counts: np.ndarray) -> np.ndarray:
    return counts * counts.sum() / (counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True))


def _ppmi_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield (np.array([[4.0, 1.0], [1.0, 4.0]]),)
    yield (rng.integers(0, 9, size=(5, 7)) + np.eye(5, 7),)
    yield (rng.integers(1, 30, size=(4, 4)).astype(float),)


# ---- 5.5 ---------------------------------------------------------------------------------------------------

Step = tuple[np.ndarray, np.ndarray, np.ndarray]


def _step(centre: np.ndarray, context: np.ndarray, negatives: np.ndarray, rate: float) -> Step:
    outputs = np.concatenate([context[None], negatives])
    wanted = np.zeros(len(outputs))
    wanted[0] = 1
    gap = wanted - sigmoid(outputs @ centre)
    moved = outputs + rate * gap[:, None] * centre
    return centre + rate * gap @ outputs, moved[0], moved[1:]


def _step_down(centre: np.ndarray, context: np.ndarray, negatives: np.ndarray, rate: float) -> Step:
    return _step(centre, context, negatives, -rate)


def _step_one_after_the_other(
    centre: np.ndarray, context: np.ndarray, negatives: np.ndarray, rate: float
) -> Step:
    outputs = np.concatenate([context[None], negatives])
    for n in range(len(outputs)):
        gap = (n == 0) - sigmoid(outputs[n] @ centre)
        old = outputs[n].copy()
        outputs[n] += rate * gap * centre
        centre = centre + rate * gap * old
    return centre, outputs[0], outputs[1:]


def _step_all_wanted(centre: np.ndarray, context: np.ndarray, negatives: np.ndarray, rate: float) -> Step:
    outputs = np.concatenate([context[None], negatives])
    gap = 1 - sigmoid(outputs @ centre)
    moved = outputs + rate * gap[:, None] * centre
    return centre + rate * gap @ outputs, moved[0], moved[1:]


def _step_of_the_outputs(centre: np.ndarray, context: np.ndarray, negatives: np.ndarray, rate: float) -> Step:
    _, context, negatives = _step(centre, context, negatives, rate)
    return centre, context, negatives


def _step_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for d, n in ((2, 1), (8, 5), (50, 5)):
        yield rng.normal(size=d), rng.normal(size=d), rng.normal(size=(n, d)), 0.05


# ---- 5.6 ---------------------------------------------------------------------------------------------------


def _analogy(vectors: np.ndarray, a: int, b: int, c: int) -> int:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = unit @ (unit[b] - unit[a] + unit[c])
    likeness[[a, b, c]] = -np.inf
    return int(likeness.argmax())


def _analogy_with_its_words(vectors: np.ndarray, a: int, b: int, c: int) -> int:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return int((unit @ (unit[b] - unit[a] + unit[c])).argmax())


def _analogy_exchanged(vectors: np.ndarray, a: int, b: int, c: int) -> int:
    return _analogy(vectors, b, a, c)


def _analogy_of_products(vectors: np.ndarray, a: int, b: int, c: int) -> int:
    likeness = vectors @ (vectors[b] - vectors[a] + vectors[c])
    likeness[[a, b, c]] = -np.inf
    return int(likeness.argmax())


def _analogy_farthest(vectors: np.ndarray, a: int, b: int, c: int) -> int:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness = unit @ (unit[b] - unit[a] + unit[c])
    likeness[[a, b, c]] = np.inf
    return int(likeness.argmin())


def _analogy_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for n in (8, 30, 30, 200):
        size = rng.uniform(0.2, 5, size=(n, 1))
        a, b, c = (int(one) for one in rng.choice(n, 3, replace=False))
        yield rng.normal(size=(n, 12)) * size, a, b, c
    vectors = np.array([[5, 0.5], [1, 0], [5, 1], [-1, 2], [-1, 0]])
    yield vectors, 1, 2, 0  # a is next after b, and all others are behind


# ---- 5.7 ---------------------------------------------------------------------------------------------------


def _nearest(table: np.ndarray, row: int, count: int) -> list[int]:
    likeness = _cosines(table[row : row + 1], table)[0]
    likeness[row] = -np.inf
    return np.argsort(-likeness, kind="stable")[:count].tolist()


def _nearest_and_itself(table: np.ndarray, row: int, count: int) -> list[int]:
    return np.argsort(-_cosines(table[row : row + 1], table)[0], kind="stable")[:count].tolist()


def _nearest_by_product(table: np.ndarray, row: int, count: int) -> list[int]:
    likeness = table @ table[row]
    likeness[row] = -np.inf
    return np.argsort(-likeness, kind="stable")[:count].tolist()


def _nearest_by_distance(table: np.ndarray, row: int, count: int) -> list[int]:
    far = np.linalg.norm(table - table[row], axis=1)
    far[row] = np.inf
    return np.argsort(far, kind="stable")[:count].tolist()


def _nearest_reversed(table: np.ndarray, row: int, count: int) -> list[int]:
    return _nearest(table, row, count)[::-1]


def _nearest_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for n, d, count in ((6, 3, 2), (100, 8, 5), (400, 16, 8)):
        yield rng.normal(size=(n, d)) * rng.uniform(0.2, 5, size=(n, 1)), int(rng.integers(n)), count
    yield np.array([[2.0, 0], [0, 1], [1, 1], [1, 0]]), 3, 2  # row 0 has the same direction


def _parts(f: Any) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(one) for one in f)


EXERCISES = [
    Exercise(
        number="5.1",
        title="Look up",
        name="look_up",
        parameters="table, ids",
        task="""
The first thing a model does: each token's id picks a row.

table: one row for each token of the vocabulary [v d]; ids: a list of t whole numbers. Returns the rows of
the ids, in their order [t d].
""",
        cases=_table_cases,
        reference=_look_up,
        mistakes=(
            Mistake("those are one-hot vectors: the table is still to be multiplied", _one_hot),
            Mistake("it picks columns: a token is a row", lambda table, ids: table[:, ids].T),
            Mistake(
                "the rows are in the table's order: a token that comes twice is there twice",
                lambda table, ids: table[sorted(ids)],
            ),
            Mistake(
                "the rows are added up: one row a token is asked for", lambda table, ids: table[ids].sum(0)
            ),
        ),
    ),
    Exercise(
        number="5.2",
        title="Cosine",
        name="cosines",
        parameters="a, b",
        task="""
How alike are two directions?

a: vectors [n d]; b: vectors [m d]. The cosine of two vectors is their product divided by both lengths: 1
for the same direction, 0 for a right angle, -1 for opposite ones. Returns an array [n m].
""",
        cases=_cosine_cases,
        reference=_cosines,
        mistakes=(
            Mistake("the products are not divided by the lengths", lambda a, b: a @ b.T),
            Mistake("they are divided by one of the two lengths", _cosines_of_one_side),
            Mistake("a length is the root of the sum of squares: the root is missing", _cosines_of_squares),
            Mistake("that is a distance: 1 - cosine", lambda a, b: 1 - _cosines(a, b)),
        ),
        properties=(
            Property("a cosine should be between -1 and 1", lambda g, f: np.all(np.abs(f) <= 1 + 1e-9)),
        ),
    ),
    Exercise(
        number="5.3",
        title="Who is near whom",
        name="neighbours",
        parameters="words, window",
        task="""
"You shall know a word by the company it keeps." Count the company.

words: a text as a list of words; window: a whole number. For each place of the text and each other place
at most `window` away, on either side, the pair (word, other word) counts once. Returns a dictionary of
the counts.
""",
        cases=_neighbour_cases,
        reference=_neighbours,
        mistakes=(
            Mistake("it looks ahead alone: both sides count", _neighbours_ahead),
            Mistake("a place is not its own neighbour", _neighbours_and_itself),
            Mistake("the window is too short by one", _neighbours_less_one),
            Mistake(
                "each pair counts once: count how often it occurs",
                lambda w, n: dict.fromkeys(_neighbours(w, n), 1),
            ),
        ),
        properties=(
            Property("each key should be a pair of words", lambda g, f: all(isinstance(k, tuple) for k in f)),
        ),
        imports="",
    ),
    Exercise(
        number="5.4",
        title="More often than by chance",
        name="ppmi",
        parameters="counts",
        task="""
Frequent words are near everything. What counts is how much more often than by chance.

counts: an array [n m], how often word i was near word j. By chance a pair would occur (row sum) (column
sum) / (sum of all) times. Returns the natural logarithm of count over that number, and 0 where it is
negative or the count is 0: positive pointwise mutual information [n m].
""",
        cases=_ppmi_cases,
        reference=_ppmi,
        mistakes=(
            Mistake("negative values stay: they become 0", _pmi_not_positive),
            Mistake("the logarithm is to base 2: it is the natural one", _ppmi_in_bits),
            Mistake("the expected count is divided by the sum of all", _ppmi_without_total),
            Mistake("the logarithm is missing", _ratios),
        ),
        properties=(Property("no value should be below 0", lambda g, f: np.all(np.asarray(f) >= 0)),),
    ),
    Exercise(
        number="5.5",
        title="A step of skip-gram",
        name="step",
        parameters="centre, context, negatives, rate",
        task="""
word2vec (1310.4546) learns vectors in which a word tells its true neighbours from random words.

centre: the word's vector [d]; context: the vector of a true neighbour [d]; negatives: vectors of random
words [n d]; rate: a number. Each output vector o (the context and the negatives) has a target y, 1 for
the context and 0 for a negative, and a gap g = y - sigmoid(o . centre). Each o grows by rate g centre;
the centre grows by the sum of rate g o, with the vectors as they were before the step. Returns (centre,
context, negatives), all new.
""",
        cases=_step_cases,
        reference=_step,
        mistakes=(
            Mistake("it goes the wrong way: a true neighbour comes nearer", _step_down),
            Mistake(
                "vectors change during the step: all gaps and sums are of the vectors before it",
                _step_one_after_the_other,
            ),
            Mistake("the negatives have target 0", _step_all_wanted),
            Mistake("the centre did not move", _step_of_the_outputs),
        ),
        properties=(
            Property(
                "a step must bring the context nearer to the centre",
                lambda g, f: _parts(f)[0] @ _parts(f)[1] >= g[0] @ g[1] or np.linalg.norm(g[2]) > 3,
            ),
        ),
    ),
    Exercise(
        number="5.6",
        title="Analogies",
        name="analogy",
        parameters="vectors, a, b, c",
        task="""
man is to king as woman is to ...?

vectors: one a word [v d]; a, b, c: rows. Scale all vectors to length 1. Returns the row whose vector has
the largest product with b - a + c, leaving out a, b and c themselves.
""",
        cases=_analogy_cases,
        reference=_analogy,
        mistakes=(
            Mistake(
                "a, b and c are left out: the nearest is nearly always one of them", _analogy_with_its_words
            ),
            Mistake("a and b are exchanged: it is b - a + c", _analogy_exchanged),
            Mistake("the vectors are not scaled to length 1: long ones win", _analogy_of_products),
            Mistake("it takes the farthest", _analogy_farthest),
        ),
        properties=(
            Property("a row's number is asked for, and not one of a, b, c", lambda g, f: int(f) not in g[1:]),
        ),
    ),
    Exercise(
        number="5.7",
        title="Neighbours in a table",
        name="nearest",
        parameters="table, row, count",
        task="""
Which tokens does a model treat alike?

table: an embedding table [v d]; row: a whole number. Returns the `count` rows whose cosine with that row
is largest, as a list, the nearest first, without the row itself.
""",
        cases=_nearest_cases,
        reference=_nearest,
        mistakes=(
            Mistake("the row itself is left out", _nearest_and_itself),
            Mistake("the products are not divided by the lengths: long rows win", _nearest_by_product),
            Mistake("that is by distance: the cosine is asked for", _nearest_by_distance),
            Mistake("the nearest comes first", _nearest_reversed),
        ),
        properties=(
            Property("the row itself is left out: it is nearest to itself", lambda g, f: g[1] not in list(f)),
        ),
    ),
]
