"""More faults that newcomers make in chapters 5 to 7: by exercise, each hint with the function that has it.

A function gets the library's own as its first argument, ``right``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cutaway.course.chapter_6 import softmax
from cutaway.course.mistakes_text import Faults

Pair = tuple[str, str]


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _pairs(words: list[str], counts: Callable[[int, int], float]) -> dict[Pair, float]:
    """What each pair of places counts, added up by their words."""
    found: dict[Pair, float] = {}
    for i, one in enumerate(words):
        for j, other in enumerate(words):
            if value := counts(i, j):
                found[one, other] = found.get((one, other), 0) + value
    return found


def _wrapped(words: list[str], window: int) -> dict[Pair, float]:
    found: dict[Pair, float] = {}
    for i, one in enumerate(words):
        for far in range(-window, window + 1):
            if far and i + far < len(words):
                found[one, words[i + far]] = found.get((one, words[i + far]), 0) + 1
    return found


def _stepped(c: Any, o: Any, n: Any, gap: Any, gaps: Any, rate: float, parts: float = 1.0) -> Any:
    return c + rate * (gap * o + gaps @ n / parts), o + rate * gap * c, n + rate * gaps[:, None] * c


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _best(vectors: np.ndarray, wanted: Callable[[np.ndarray], Any], a: int, b: int, c: int) -> int:
    products = _unit(vectors) @ wanted(_unit(vectors))
    products[[a, b, c]] = -np.inf
    return int(products.argmax())


def _zeroed(products: np.ndarray, rows: list[int]) -> int:
    products[rows] = 0
    return int(products.argmax())


def _causal(size: int) -> np.ndarray:
    return np.tril(np.ones((size, size), bool))


def _read(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: Any = True, scale: float | None = None
) -> Any:
    scores = q @ np.swapaxes(k, -1, -2) / (math.sqrt(q.shape[-1]) if scale is None else scale)
    return softmax(np.where(visible, scores, -1e30)) @ v


def _grouped(q: np.ndarray, k: np.ndarray, v: np.ndarray, visible: np.ndarray) -> np.ndarray:
    each = len(q) // len(k)
    return _read(q, np.repeat(k, each, 0), np.repeat(v, each, 0), visible)


def _phi(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def _decoded(x: np.ndarray, project: Any, read: Callable[..., np.ndarray]) -> np.ndarray:
    """Each token's output by what was kept until then."""
    keys, values, found = [], [], []
    for one in x:
        q, k, v = project(one)
        keys.append(k)
        values.append(v)
        found.append(read(q, np.array(keys), np.array(values)))
    return np.array(found)


def _scaled(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    return q @ k.T / math.sqrt(q.shape[1])


def _normed(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum(1, keepdims=True)


def _drawn(size: int, count: int, seed: int) -> np.ndarray:
    """[2 count size]: all queries, then all keys."""
    return np.random.default_rng(seed).normal(size=(2, count, size))


def _products(size: int, count: int, seed: int) -> np.ndarray:
    return _drawn(size, count, seed).prod(0).sum(1)


def _weights(scores: np.ndarray) -> np.ndarray:
    return softmax(scores[None])[0]


def _as(kind: str, other: str) -> Callable[..., Any]:
    """The cache of one kind where another is asked for."""
    return lambda right, asked, *rest: right(other if asked == kind else asked, *rest)


SPREADS = {
    "the products are divided by the root of the size: the spread before that is asked for": (
        lambda right, size, *rest: right(size, *rest) / math.sqrt(size)
    ),
    "that is the spread of single numbers' products: a dot product is a sum of them": lambda right, *given: (
        _drawn(*given).prod(0).std()
    ),
    "that is the variance: the standard deviation is its root": lambda right, *given: right(*given) ** 2,
    "the two vectors are the same one: draw a query and a key": lambda right, size, count, seed: (
        (_drawn(size, count, seed)[0] ** 2).sum(1).std()
    ),
    "the numbers are drawn between 0 and 1: normal ones are asked for": lambda right, size, count, seed: (
        np.random.default_rng(seed).random((2, count, size)).prod(0).sum(1).std()
    ),
    "nothing was drawn: that is the root itself": lambda right, size, *rest: math.sqrt(size),
    "a query's numbers are added up, and no key is there": lambda right, *given: (
        _drawn(*given)[0].sum(1).std()
    ),
    "each query meets every key: it has one of its own": lambda right, *given: np.std(
        _drawn(*given)[0] @ _drawn(*given)[1].T
    ),
    "all queries meet one key: each has a key of its own": lambda right, *given: np.std(
        _drawn(*given)[0] @ _drawn(*given)[1, 0]
    ),
    "the sum is over all vectors: a dot product adds the numbers of one": lambda right, *given: (
        _drawn(*given).prod(0).sum(0).std()
    ),
    "a vector has `count` numbers: it has `size`, and there are `count` of them": lambda right, *given: (
        _products(given[1], given[0], given[2]).std()
    ),
    "the seed is not used": lambda right, size, count, seed: right(size, count, 0),
    "that is the range: the standard deviation is asked for": lambda right, *given: np.ptp(_products(*given)),
    "that is the mean distance from 0: the standard deviation is asked for": lambda right, *given: np.abs(
        _products(*given)
    ).mean(),
    "that is the mean: the standard deviation is asked for": lambda right, *given: _products(*given).mean(),
    "it is divided by count - 1: np.std divides by count": lambda right, *given: _products(*given).std(
        ddof=1
    ),
}
VECTORS: Faults = {
    "5.1": {
        "the ids are off by one: id 0 is the first row": lambda right, t, i: t[np.asarray(i) - 1],
        "the rows were scaled: they are picked as they are": lambda right, t, i: _unit(right(t, i)),
        "it takes the first rows: an id says which": lambda right, t, i: t[: len(i)],
    },
    "5.2": {
        "it divides by the length of all vectors together: each has its own": lambda right, a, b: (
            a @ b.T / (np.linalg.norm(a) * np.linalg.norm(b))
        ),
        "it is squared: an opposite direction has -1": lambda right, a, b: right(a, b) ** 2,
        "the sign is lost: an opposite direction has -1": lambda right, a, b: np.abs(right(a, b)),
        "a length is the root of the sum of squares": lambda right, a, b: (
            a @ b.T / (np.abs(a).sum(1)[:, None] * np.abs(b).sum(1))
        ),
        "the mean is taken off: that is a correlation": lambda right, a, b: right(
            a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
        ),
    },
    "5.3": {
        "the window is too long by one": lambda right, w, n: right(w, n + 1),
        "it looks back alone: both sides count": lambda right, w, n: _pairs(w, lambda i, j: 0 < i - j <= n),
        "a place before the first one counts from the end": lambda right, w, n: _wrapped(w, n),
        "two equal words at two places are neighbours too": lambda right, w, n: {
            pair: count for pair, count in right(w, n).items() if pair[0] != pair[1]
        },
        "the right side of the window is too short by one": lambda right, w, n: _pairs(
            w, lambda i, j: 0 < i - j <= n or 0 < j - i < n
        ),
        "the first places have no left neighbours: what is cut from below 0 is empty": (
            lambda right, w, n: _pairs(w, lambda i, j: (i >= n and 0 < i - j <= n) or 0 < j - i <= n)
        ),
        "a word that is near a place twice counts twice": lambda right, w, n: _pairs(
            w,
            lambda i, j: (
                0 < abs(i - j) <= n and not any(w[x] == w[j] for x in range(max(i - n, 0), j) if x != i)
            ),
        ),
        "a word that occurs again has other neighbours there: `index` finds its first place": (
            lambda right, w, n: _pairs(
                w, lambda i, j: w.count(w[i]) if w.index(w[i]) == i and 0 < abs(i - j) <= n else 0
            )
        ),
        "it counts only what is exactly as far as the window": lambda right, w, n: _pairs(
            w, lambda i, j: abs(i - j) == n
        ),
        "a neighbour counts once, however far away in the window": lambda right, w, n: _pairs(
            w, lambda i, j: 1 / abs(i - j) if 0 < abs(i - j) <= n else 0
        ),
    },
    "5.4": {
        "1 is added before the logarithm": lambda right, c: np.log1p(
            c * c.sum() / (c.sum(1, keepdims=True) * c.sum(0))
        ),
        "negative values lose their sign: they become 0": lambda right, c: np.abs(
            np.log(np.where(c > 0, c * c.sum() / (c.sum(1, keepdims=True) * c.sum(0)), 1))
        ),
        "the logarithm is to base 10: it is the natural one": lambda right, c: right(c) / math.log(10),
        "something is added to the counts: a count of 0 gives 0": lambda right, c: np.maximum(
            np.log((c + 1e-3) * c.sum() / (c.sum(1, keepdims=True) * c.sum(0))), 0
        ),
    },
    "5.5": {
        "the sigmoid is missing: a gap is target - sigmoid(product)": lambda right, c, o, n, r: _stepped(
            c, o, n, 1 - o @ c, -(n @ c), r
        ),
        "the centre moves by the context alone: the negatives push it too": lambda right, c, o, n, r: (
            c + r * (1 - sigmoid(o @ c)) * o,
            *right(c, o, n, r)[1:],
        ),
        "the negatives did not move": lambda right, c, o, n, r: (*right(c, o, n, r)[:2], n),
        "the negatives are averaged: their pushes add up": lambda right, c, o, n, r: (
            _stepped(c, o, n, 1 - sigmoid(o @ c), -sigmoid(n @ c), r, len(n))[:1] + right(c, o, n, r)[1:]
        ),
        "the rate is missing": lambda right, c, o, n, r: right(c, o, n, 1.0),
        "the negatives are left out": lambda right, c, o, n, r: (
            c + r * (1 - sigmoid(o @ c)) * o,
            right(c, o, n, r)[1],
            n,
        ),
        "the centre moves by the new outputs: by those before the step": lambda right, c, o, n, r: (
            c + r * (1 - sigmoid(o @ c)) * right(c, o, n, r)[1] - r * sigmoid(n @ c) @ right(c, o, n, r)[2],
            *right(c, o, n, r)[1:],
        ),
        "the outputs move by the new centre: by the one before the step": lambda right, c, o, n, r: (
            right(c, o, n, r)[0],
            o + r * (1 - sigmoid(o @ c)) * right(c, o, n, r)[0],
            n - r * sigmoid(n @ c)[:, None] * right(c, o, n, r)[0],
        ),
    },
    "5.6": {
        "a is added: it is b - a + c": lambda right, v, a, b, c: _best(
            v, lambda u: u[b] + u[a] + u[c], a, b, c
        ),
        "a and c are exchanged: it is b - a + c": lambda right, v, a, b, c: _best(
            v, lambda u: u[b] - u[c] + u[a], a, b, c
        ),
        "a is left out too, not only b and c": lambda right, v, a, b, c: _best(
            v, lambda u: u[b] - u[a] + u[c], b, b, c
        ),
        "a, b and c get 0, and all others may be below it: leave them out": lambda right, v, a, b, c: _zeroed(
            _unit(v) @ (_unit(v)[b] - _unit(v)[a] + _unit(v)[c]), [a, b, c]
        ),
        "c is missing: it is b - a + c": lambda right, v, a, b, c: _best(v, lambda u: u[b] - u[a], a, b, c),
    },
    "5.7": {
        "it takes the farthest": lambda right, t, r, k: right(t, r, len(t) - 1)[::-1][:k],
        "those are cosines: the numbers of the rows are asked for": lambda right, t, r, k: sorted(
            np.delete((_unit(t) @ _unit(t)[r]), r).tolist(), reverse=True
        )[:k],
        "the first is left out, and not the row itself: another may have the same direction": (
            lambda right, t, r, k: np.argsort(-_unit(t) @ _unit(t)[r], kind="stable")[1 : k + 1].tolist()
        ),
        "there is one too few": lambda right, t, r, k: right(t, r, k - 1),
        "there is one too many": lambda right, t, r, k: right(t, r, k + 1),
    },
    "6.1": {
        "it divides by a root: only scores are scaled": lambda right, x, w: (
            right(x, w) / math.sqrt(x.shape[1])
        ),
        "the result was made whole numbers": lambda right, x, w: right(x, w).astype(int),
        "it is the mean of the products: they are added up": lambda right, x, w: right(x, w) / x.shape[1],
        "the softmax is not asked for": lambda right, x, w: softmax(right(x, w)),
    },
    "6.2": {
        "the softmax is not asked for: scores may have any sign": lambda right, q, k: softmax(right(q, k)),
        "the root is of the number of queries: it is of the size of a vector": lambda right, q, k: (
            q @ k.T / math.sqrt(len(q))
        ),
        "it multiplies by the root: it divides": lambda right, q, k: right(q, k) * q.shape[1],
        "that is a cosine: a long key has a large score": lambda right, q, k: _unit(q) @ _unit(k).T,
        "that is a distance: a score is a product": lambda right, q, k: (
            -np.linalg.norm(q[:, None] - k, axis=-1)
        ),
        "8 is the root of 64 alone: a vector has n numbers": lambda right, q, k: q @ k.T / 8,
    },
    "6.3": {
        "it takes the largest alone: others have weights too": lambda right, s: (
            s == s.max(1, keepdims=True)
        ).astype(float),
        "the scores are made smaller: subtract, and do not divide": lambda right, s: right(s / 1000),
        "the scores are divided by the largest: that changes the weights": lambda right, s: right(
            s / np.abs(s).max()
        ),
        "each row is divided by its largest: that changes the weights": lambda right, s: right(
            s / np.abs(s).max(1, keepdims=True)
        ),
        "one number is subtracted from all rows, and a row far below it becomes 0 / 0": lambda right, s: (
            _normed(np.exp(s - s.max()))
        ),
        "every e^(what is left) is 0, and 0 / 0 is no number: was a constant subtracted?": lambda right, s: (
            _normed(np.exp(s - 1000))
        ),
        "a number that is not the row's largest is subtracted, and e^(what is left) is too large": (
            lambda right, s: _normed(np.exp(s - s.min(1, keepdims=True)))
        ),
        "there is no exponential: the smallest score should not have the weight 0": lambda right, s: _normed(
            s - s.min(1, keepdims=True)
        ),
    },
    "6.4": {
        "a later key is hidden: here every query sees every key": lambda right, q, k, v: _read(
            q, k, v, np.arange(len(k)) <= np.arange(len(q))[:, None]
        ),
        "the root is of the size of a value: it is of the size of a key": lambda right, q, k, v: _read(
            q, k, v, scale=math.sqrt(v.shape[1])
        ),
        "the root is of the number of keys: it is of the size of one": lambda right, q, k, v: _read(
            q, k, v, scale=math.sqrt(len(k))
        ),
        "all values weigh alike: the scores are not used": lambda right, q, k, v: np.repeat(
            v.mean(0)[None], len(q), 0
        ),
        "queries are compared with values: they are compared with keys": lambda right, q, k, v: (
            _read(q, v, v) if v.shape == k.shape else right(q, k, v)
        ),
        "the softmax is over the queries: the weights of one query sum to 1": lambda right, q, k, v: (
            softmax(_scaled(q, k).T).T @ v
        ),
        "the softmax is over the whole array: the weights of one query sum to 1": lambda right, q, k, v: (
            softmax(_scaled(q, k).reshape(1, -1)).reshape(len(q), len(k)) @ v
        ),
        "e^score is no weight yet: the weights of one query sum to 1": lambda right, q, k, v: (
            np.exp(_scaled(q, k)) @ v
        ),
        "the weights are not divided by their sum": lambda right, q, k, v: (
            np.exp(_scaled(q, k) - _scaled(q, k).max(1, keepdims=True)) @ v
        ),
        "there is no exponential: shares of scores may be negative, or 0 / 0": lambda right, q, k, v: (
            _normed(_scaled(q, k)) @ v
        ),
        "8 is the root of 64 alone: a vector has n numbers": lambda right, q, k, v: _read(q, k, v, scale=8.0),
    },
    "6.5": SPREADS,
    "7.1": {
        "that is a sigmoid: it is the tanh": lambda right, q, k, w, u, v: np.stack(
            [sigmoid(q @ w.T + u @ one) @ v for one in k], 1
        ),
        "v is missing: the numbers are weighted by v, and not just added": lambda right, q, k, w, u, v: right(
            q, k, w, u, np.ones_like(v)
        ),
        "the two are multiplied: they are added": lambda right, q, k, w, u, v: np.stack(
            [np.tanh((q @ w.T) * (u @ one)) @ v for one in k], 1
        ),
        "it divides by a root: this score is not scaled": lambda right, q, k, w, u, v: (
            right(q, k, w, u, v) / math.sqrt(len(v))
        ),
        "the key is taken off: it is added": lambda right, q, k, w, u, v: right(q, -k, w, u, v),
    },
    "7.2": {
        "nothing is hidden: later tokens are": lambda right, n: np.ones((n, n), bool),
        "a token sees itself alone: earlier ones are seen too": lambda right, n: np.eye(n, dtype=bool),
    },
    "7.3": {
        "later tokens are hidden: the window ends at the token itself": lambda right, n, w: (
            np.arange(n)[None] > np.arange(n)[:, None] - w
        ),
        "all see the end of the text: each token has a window of its own": lambda right, n, w: (
            _causal(n) & (np.arange(n) >= n - w)
        ),
        "all see the beginning of the text: each token has a window of its own": lambda right, n, w: (
            _causal(n) & (np.arange(n) < w)
        ),
        "what is seen is hidden: True is what is seen": lambda right, n, w: ~right(n, w),
    },
    "7.4": {
        "the scores are divided by d: it is the root of d": lambda right, q, k, v, m: _read(
            q, k, v, m, q.shape[1]
        ),
        "a hidden score is -1: it must be -infinity before the softmax": lambda right, q, k, v, m: (
            softmax(np.where(m, q @ k.T / math.sqrt(q.shape[1]), -1)) @ v
        ),
        "1 is added to what is seen: -infinity hides what is not": lambda right, q, k, v, m: (
            softmax(q @ k.T / math.sqrt(q.shape[1]) + m) @ v
        ),
        "the mask is transposed: the row is the token that looks": lambda right, q, k, v, m: right(
            q, k, v, m.T
        ),
        "the softmax is missing": lambda right, q, k, v, m: (
            np.where(m, q @ k.T / math.sqrt(q.shape[1]), 0) @ v
        ),
    },
    "7.5": {
        "the queries of a group are averaged: each head asks by itself": lambda right, q, k, v: right(
            np.repeat(q.reshape(len(k), -1, *q.shape[1:]).mean(1), len(q) // len(k), 0), k, v
        ),
        "all heads read the last group": lambda right, q, k, v: right(q, k[-1:], v[-1:]),
        "the groups are averaged: a head reads its own group": lambda right, q, k, v: right(
            q, k.mean(0, keepdims=True), v.mean(0, keepdims=True)
        ),
        "the values take turns (0, 1, 0, 1), the keys do not": lambda right, q, k, v: _read(
            q,
            np.repeat(k, len(q) // len(k), 0),
            np.tile(v, (len(q) // len(v), 1, 1)),
            _causal(q.shape[1]),
        ),
        "the mask is the other way round: it hides what was before": lambda right, q, k, v: _grouped(
            q, k, v, _causal(q.shape[1]).T
        ),
    },
    "7.6": {
        "it is divided by the sum over all tokens: those up to the token itself": lambda right, q, k, v: (
            np.tril(_phi(q) @ _phi(k).T) @ v / (_phi(q) @ _phi(k).T).sum(1, keepdims=True)
        ),
        "the product is scaled by a root: phi(q) . phi(k) is not": lambda right, q, k, v: right(
            q / math.sqrt(q.shape[1]), k, v
        ),
        "a token reads itself alone: add to the state, and do not replace it": lambda right, q, k, v: v,
        "phi is of each query and each key, and not of their product": lambda right, q, k, v: (
            (weights := np.tril(_phi(q @ k.T))) @ v / weights.sum(1, keepdims=True)
        ),
    },
    "7.7": {
        "keys and values are exchanged": lambda right, x, p: _decoded(
            x, p, lambda q, k, v: _weights(v @ q / math.sqrt(len(q))) @ k
        ),
        "all values weigh alike: the query is not used": lambda right, x, p: _decoded(
            x, p, lambda q, k, v: v.mean(0)
        ),
        "the softmax is missing": lambda right, x, p: _decoded(
            x, p, lambda q, k, v: k @ q / math.sqrt(len(q)) @ v
        ),
        "the best value alone is taken: the mean of all, by their weights": lambda right, x, p: _decoded(
            x, p, lambda q, k, v: v[(k @ q).argmax()]
        ),
        "the root is of the number of keys: it is of the size of one": lambda right, x, p: _decoded(
            x, p, lambda q, k, v: _weights(k @ q / math.sqrt(len(k))) @ v
        ),
        "the oldest keys are forgotten: a query attends to all so far": lambda right, x, p: _decoded(
            x, p, lambda q, k, v: _weights(k[-2:] @ q / math.sqrt(len(q))) @ v[-2:]
        ),
    },
    "7.8": {
        "mla keeps one latent, and no keys or values of groups": _as("mla", "gqa"),
        "it is of one token: each token is kept": lambda right, kind, n, *rest: right(kind, 1, *rest),
        "mqa keeps one key and one value for all heads": _as("mqa", "mha"),
        "gqa keeps a key and a value for each group": _as("gqa", "mqa"),
        "those are megabytes: bytes are asked for": lambda right, *g: right(*g) / 1e6,
        "those are bits: a byte has eight": lambda right, *g: 8 * right(*g),
        "a latent has `latent` numbers, whatever the size of a key": lambda right, kind, n, y, h, g, s, c: (
            right(kind, n, y, h, g, s, c * s)
        ),
    },
    "7.9": {
        "all heads use the mean of the matrices: each has its own": lambda right, q, c, w: right(
            q, c, np.repeat(w.mean(0)[None], len(w), 0)
        ),
        "the scores are divided by n: it is the root of n": lambda right, q, c, w: (
            right(q, c, w) / math.sqrt(q.shape[2])
        ),
    },
}
