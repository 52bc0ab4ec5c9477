"""Chapter 6, query, key and value: projections, scores, a stable softmax, the sum of values, heads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from cutaway.course.exercise import Arguments, Exercise, Mistake, Property

TITLE = "Query, key and value"
QUESTION = "How does a token decide which other tokens to read, and what does it take from them?"
TEXT = (
    "When Mary and John went to the store, John gave a drink to Mary. Then Mary thanked John for the drink."
)


# ---- 6.1 ---------------------------------------------------------------------------------------------------


def _projected(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x @ weight.T


def _projection_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield np.array([[1.0, 2.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    yield rng.normal(size=(5, 8)), rng.normal(size=(4, 8))
    yield rng.normal(size=(3, 6)), rng.normal(size=(6, 6))  # a square matrix, which hides a missing transpose


# ---- 6.2 ---------------------------------------------------------------------------------------------------


def _scores(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    return q @ k.T / math.sqrt(q.shape[-1])


def _score_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield np.array([[1.0, 1.0, 1.0, 1.0]]), np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 0.0, 0.0, 0.0]])
    yield rng.normal(size=(3, 64)), rng.normal(size=(5, 64))
    yield rng.normal(size=(4, 9)), rng.normal(size=(4, 9))


# ---- 6.3 ---------------------------------------------------------------------------------------------------


def softmax(scores: np.ndarray) -> np.ndarray:
    grown = np.exp(scores - scores.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


def _softmax_of_columns(scores: np.ndarray) -> np.ndarray:
    return softmax(scores.T).T


def _softmax_of_all(scores: np.ndarray) -> np.ndarray:
    return softmax(scores.reshape(1, -1)).reshape(scores.shape)


def _shares(scores: np.ndarray) -> np.ndarray:
    return scores / scores.sum(-1, keepdims=True)


def _softmax_in_base_2(scores: np.ndarray) -> np.ndarray:
    return softmax(scores * math.log(2))


def _softmax_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield (np.array([[0.0, math.log(3.0)]]),)
    yield (rng.normal(size=(4, 6)),)
    yield (rng.normal(size=(3, 3)) * 5,)
    yield (np.array([[1000.0, 1001.0], [-1000.0, -1002.0], [-1000.0, 1000.0]]),)  # e^1000 does not fit


# ---- 6.4 ---------------------------------------------------------------------------------------------------


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return softmax(_scores(q, k)) @ v


def _attention_unscaled(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return softmax(q @ k.T) @ v


def _attention_without_softmax(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _scores(q, k) @ v


def _attention_to_the_best(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return v[_scores(q, k).argmax(-1)]


def _attention_divided(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return softmax(q @ k.T / q.shape[-1]) @ v


def _attention_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield np.zeros((1, 4)), rng.normal(size=(3, 4)), np.array([[3.0], [6.0], [0.0]])  # equal scores: the mean
    yield rng.normal(size=(2, 16)), rng.normal(size=(5, 16)), rng.normal(size=(5, 3))
    yield 3 * rng.normal(size=(6, 64)), rng.normal(size=(6, 64)), rng.normal(size=(6, 64))


# ---- 6.5 ---------------------------------------------------------------------------------------------------


def _spread(size: int, count: int, seed: int) -> float:
    q, k = _drawn(size, count, seed)
    return float((q * k).sum(-1).std())


def _drawn(size: int, count: int, seed: int) -> np.ndarray:
    """[2 count size]: all queries, then all keys."""
    return np.random.default_rng(seed).normal(size=(2, count, size))


def _spread_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    for size, count in ((4, 800), (64, 600), (256, 500)):
        yield size, count, int(rng.integers(1, 1 << 30))


def _is_not_near(arguments: Arguments, result: Any) -> bool:
    """Whether a spread is far from that of any draw."""
    return abs(float(result) / math.sqrt(arguments[0]) - 1) > 0.2


# ---- 6.6 ---------------------------------------------------------------------------------------------------


def _split(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(len(x), heads, -1).swapaxes(0, 1)


def _split_without_moving(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(heads, len(x), -1)


def _split_interleaved(x: np.ndarray, heads: int) -> np.ndarray:
    return x.reshape(len(x), -1, heads).transpose(2, 0, 1)


def _split_reversed(x: np.ndarray, heads: int) -> np.ndarray:
    return _split(x, heads)[::-1]


def _split_transposed(x: np.ndarray, heads: int) -> np.ndarray:
    made = _split(x, heads)
    return made.swapaxes(1, 2).reshape(made.shape)


def _head_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield np.arange(8.0).reshape(2, 4), 2
    yield rng.normal(size=(5, 576)), 9
    yield rng.normal(size=(3, 12)), 3


# ---- 6.7 ---------------------------------------------------------------------------------------------------


@cache
def _patterns() -> np.ndarray:
    """[layers heads t t]: SmolLM2's attention weights in a text."""
    import cutaway

    lm = cutaway.load("smollm2")
    names = [f"blocks.{n}.attention.pattern" for n in range(len(lm.config.blocks))]
    trace = lm.trace(TEXT, names=names)
    return np.stack([np.asarray(trace[name]) for name in names])


def _previous(patterns: np.ndarray) -> np.ndarray:
    """[layers heads]: the mean weight on the token before, from the second token on."""
    return np.diagonal(patterns, -1, 2, 3).mean(-1)


def _find_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield (_patterns(),)
    yield (_made_patterns(rng),)
    yield (_patterns()[::-1, ::-1],)  # the heads in reversed order: a constant is found out


def _made_patterns(rng: np.random.Generator) -> np.ndarray:
    """[3 4 7 7]: one head looks back by 0.68 on average, others more at a single token, or at another one."""
    heads, size = (3, 4), 7
    patterns = softmax(
        np.where(np.tril(np.ones((size, size), bool)), rng.normal(size=(*heads, size, size)), -1e30)
    )

    def put(layer: int, head: int, row: int, column: int, weight: float) -> None:
        of = patterns[layer, head, row]
        of *= (1 - weight) / (of.sum() - of[column])
        of[column] = weight

    for row in range(1, size):
        put(2, 1, row, row - 1, 0.1 if row == 2 else 0.8)
        put(1, 3, row, row - 1, 0.55)  # the largest minimum
        put(0, 1, row, row - 1, 0.9 if row < 5 else 0.05)  # the largest median
        put(0, 3, row, 0, 0.9)
        put(1, 2, row, row, 0.9)
    put(0, 2, size - 1, size - 2, 0.95)
    put(1, 0, 3, 2, 0.99)
    return patterns


def _find_judged(arguments: Arguments, result: Any) -> str | None:
    patterns = arguments[0]
    means = _previous(patterns)
    try:
        layer, head = (int(one) for one in result)
    except (TypeError, ValueError):
        return "the result should be two whole numbers: layer and head"
    best = _largest(means)
    if (layer, head) == best:
        return None
    if (head, layer) == best:
        return "layer and head are exchanged: the layer comes first"
    if (layer, head) == _largest(_previous(_patterns())) and patterns.shape != _patterns().shape:
        return "it is the same head for all patterns: find it in those that are given"
    if not (0 <= layer < means.shape[0] and 0 <= head < means.shape[1]):
        most = ".".join(str(size - 1) for size in means.shape)
        return f"there is no head {layer}.{head}: they go from 0.0 to {most}"
    for hint, found in _other_heads(patterns).items():
        if (layer, head) == _largest(found):
            return hint
    mean = f"{means[layer, head]:.2f}"
    return f"head {layer}.{head} looks at the token before with a mean weight of {mean}: another has more"


def _largest(found: np.ndarray) -> tuple[int, int]:
    layer, head = np.unravel_index(found.argmax(), found.shape)
    return int(layer), int(head)


def _other_heads(patterns: np.ndarray) -> dict[str, np.ndarray]:
    """What is looked for by mistake, [layers heads], by its hint."""
    before = np.diagonal(patterns, -1, 2, 3)
    return {
        "that head looks at the first token most (an attention sink)": patterns[..., 0].mean(-1),
        "that head looks at the token itself most": np.diagonal(patterns, 0, 2, 3).mean(-1),
        "that head has the largest single weight on a token before: the mean over the tokens is asked for": (
            before.max(-1)
        ),
        "only the last token was looked at: the mean over all tokens with one before them is asked for": (
            before[..., -1]
        ),
        "all heads are equal there: no token sees the one after it, and each map has a 1 in it": np.diagonal(
            patterns, 1, 2, 3
        ).mean(-1),
    }


EXERCISES = [
    Exercise(
        number="6.1",
        title="Project",
        name="project",
        parameters="x, weight",
        task="""
Each token's query (or key, or value) is its vector, multiplied by a matrix.

x: one vector a token [t d]; weight: a matrix as files keep it, one row for each number that comes out [n
d]. Returns an array [t n]: number j of token i is the product of row j of the weight and vector i.
""",
        cases=_projection_cases,
        reference=_projected,
        mistakes=(
            Mistake("the weight is not transposed: a row of it meets a token's vector", lambda x, w: x @ w),
            Mistake("tokens and numbers are exchanged: tokens come first", lambda x, w: w @ x.T),
            Mistake("it multiplies by the weight of another direction", lambda x, w: x @ w[::-1].T),
        ),
    ),
    Exercise(
        number="6.2",
        title="Scores",
        name="scores",
        parameters="q, k",
        task="""
How well does each query fit each key?

q: queries [t n]; k: keys [s n]. A score is the dot product of a query and a key, divided by the root of
their size n. Returns an array [t s]: one row for each query.
""",
        cases=_score_cases,
        reference=_scores,
        mistakes=(
            Mistake("the scores are not divided by the root of n", lambda q, k: q @ k.T),
            Mistake("the scores are divided by n: it is the root of n", lambda q, k: q @ k.T / q.shape[-1]),
            Mistake(
                "keys and queries are exchanged: one row for each query",
                lambda q, k: k @ q.T / math.sqrt(q.shape[-1]),
            ),
            Mistake(
                "the root is of the number of keys: it is of the size of a vector",
                lambda q, k: q @ k.T / math.sqrt(len(k)),
            ),
        ),
    ),
    Exercise(
        number="6.3",
        title="A softmax that is stable",
        name="softmax",
        parameters="scores",
        task="""
Scores become weights: all above 0, and each row sums to 1.

scores: an array [t s], whose numbers may be 1000 or -1000. Weight j of a row is e^(score j), divided by
the sum of e^score over the row. e^1000 is too large for a float; the result is the same if a number is
subtracted from a whole row before. Returns an array [t s].
""",
        cases=_softmax_cases,
        reference=softmax,
        mistakes=(
            Mistake("it sums over columns: each row sums to 1", _softmax_of_columns),
            Mistake("it sums over the whole array: each row sums to 1", _softmax_of_all),
            Mistake("there is no exponential: shares may be negative", _shares),
            Mistake("it is 2^score: the base is e", _softmax_in_base_2),
        ),
        properties=(
            Property("each row should sum to 1", lambda g, f: np.allclose(np.asarray(f).sum(-1), 1)),
            Property("no weight should be below 0", lambda g, f: np.all(np.asarray(f) >= 0)),
            Property(
                "a larger score should have a larger weight",
                lambda g, f: np.array_equal(np.argmax(f, -1), np.argmax(g[0], -1)),
            ),
        ),
    ),
    Exercise(
        number="6.4",
        title="One head",
        name="attention",
        parameters="q, k, v",
        task="""
What a head gives each token: the mean of all values, weighted by how well its query fits their keys.

q: queries [t n]; k: keys [s n]; v: values [s m], whose size m may be another one. Scores as in 6.2,
weights as in 6.3. Returns an array [t m]. Every query sees every key here; chapter 7 hides some.
""",
        cases=_attention_cases,
        reference=_attention,
        mistakes=(
            Mistake("the scores are not divided by the root of n", _attention_unscaled),
            Mistake("the scores are divided by n: it is the root of n", _attention_divided),
            Mistake("the softmax is missing: the weights of a row sum to 1", _attention_without_softmax),
            Mistake("it takes the best value alone: a head takes a mean of all", _attention_to_the_best),
        ),
        properties=(
            Property(
                "a mean cannot be outside of the values",
                lambda g, f: np.all(f <= g[2].max(0) + 1e-9) and np.all(f >= g[2].min(0) - 1e-9),
            ),
            Property(
                "equal scores should give the plain mean of the values",
                lambda g, f: bool(np.any(g[0])) or np.allclose(f, g[2].mean(0)),
            ),
        ),
    ),
    Exercise(
        number="6.5",
        title="Why the root? Measure it",
        name="spread",
        parameters="size, count, seed",
        task="""
How far do dot products of random vectors spread?

Draw `count` queries, then as many keys, of `size` independent normal numbers (mean 0, standard deviation 1)
by `np.random.default_rng(seed)`. Query number i belongs to key number i. Return the standard deviation of
these `count` dot products (np.std): one number. Compare it with the root of the size, and say to yourself
what a softmax does to scores so far apart.
""",
        cases=_spread_cases,
        reference=_spread,
        properties=(
            Property(
                "it is near, but other numbers were drawn: the seed, or the order of queries and keys",
                _is_not_near,
            ),
        ),
    ),
    Exercise(
        number="6.6",
        title="Several heads",
        name="split_heads",
        parameters="x, heads",
        task="""
One matrix makes the queries of all heads side by side; each head takes its own part.

x: [t heads*n], in which numbers 0 to n - 1 are head 0's, the next n head 1's, and so on. Returns an array
[heads t n].
""",
        cases=_head_cases,
        reference=_split,
        mistakes=(
            Mistake(
                "tokens and heads are mixed up: cut each row into heads, then bring heads to the front",
                _split_without_moving,
            ),
            Mistake("a head takes every n-th number: its numbers are neighbours", _split_interleaved),
            Mistake("the heads are in reversed order", _split_reversed),
            Mistake("inside a head tokens and numbers are exchanged", _split_transposed),
        ),
    ),
    Exercise(
        number="6.7",
        title="Find the head that looks one token back",
        name="previous_token_head",
        parameters="patterns",
        task="""
A real model has heads with clear habits. One of SmolLM2's looks at the token before, nearly always.

patterns: its attention weights in a text [layers heads t t]; entry [l, h, i, j] is how much token i looks
at token j in head h of layer l. Returns (layer, head): the head whose mean weight on the token before is
the largest, over the tokens that have one before them.
""",
        cases=_find_cases,
        judge=_find_judged,
    ),
]
