"""Chapter 6: solutions, and wrong answers with words of the hint that each must get."""

import numpy as np


def project(x, weight):
    return np.einsum("td,kd->tk", x, weight)


def scores(q, k):
    return np.einsum("td,sd->ts", q, k) * q.shape[1] ** -0.5


def softmax(scores):
    scores = scores - np.max(scores, axis=1, keepdims=True)
    e = np.exp(scores)
    return e / np.sum(e, axis=1, keepdims=True)


def attention(q, k, v):
    return softmax(scores(q, k)) @ v


def spread(size, count, seed):
    rng = np.random.default_rng(seed)
    q, k = rng.standard_normal((2, count, size))
    return np.std(np.sum(q * k, axis=1))


def split_heads(x, heads):
    size = x.shape[1] // heads
    return np.stack([x[:, h * size : (h + 1) * size] for h in range(heads)])


def previous_token_head(patterns):
    layers, heads, t, _ = patterns.shape
    best, found = -1.0, (0, 0)
    for layer in range(layers):
        for head in range(heads):
            mean = np.mean([patterns[layer, head, i, i - 1] for i in range(1, t)])
            if mean > best:
                best, found = mean, (layer, head)
    return found


def _shares(weights):
    return weights / weights.sum(1, keepdims=True)


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def _columns(size, count, seed):
    """All queries, and all keys as columns."""
    q, k = _normal(seed, 2, count, size)
    return q, k.T


def _products(size, count, seed):
    return np.random.default_rng(seed).normal(size=(2, count, size)).prod(0).sum(1)


def _at(found):
    return np.unravel_index(found.argmax(), found.shape)


SOLUTIONS = {
    "6.1": project,
    "6.2": scores,
    "6.3": softmax,
    "6.4": attention,
    "6.5": spread,
    "6.6": split_heads,
    "6.7": previous_token_head,
}
WRONG = {
    "6.1": [
        (lambda x, w: x @ w, "not transposed"),
        (lambda x, w: w @ x.T, "tokens come first"),
        (lambda x, w: x @ w.T + 1, "differs"),
        (lambda x, w: [list(r) for r in x @ (2 * w.T)], "differs"),
    ],
    "6.2": [
        (lambda q, k: q @ k.T, "not divided"),
        (lambda q, k: q @ k.T / q.shape[1], "it is the root of n"),
        (lambda q, k: q @ k.T / np.sqrt(len(k)), "number of keys"),
        (lambda q, k: (q @ k.T / np.sqrt(q.shape[1])).T, "exchanged"),
        (lambda q, k: (q[:, None] * k[None]).mean(-1), "it is the root of n"),
    ],
    "6.3": [
        (lambda s: np.exp(s) / np.exp(s).sum(-1, keepdims=True), "NaN"),
        (lambda s: softmax(s.T).T, "columns"),
        (lambda s: np.exp(s - s.max(-1, keepdims=True)), "each row should sum to 1"),
        (lambda s: softmax(-s), "larger weight"),
        (lambda s: softmax(s)[0], "shape"),
        (lambda s: _shares(np.exp(s - s.max())), "one number is subtracted from all rows"),
        (lambda s: _shares(np.exp(s - 1001)), "was a constant subtracted"),
        (lambda s: _shares(np.exp(s - s.min(1, keepdims=True))), "not the row's largest"),
        (lambda s: _shares(np.exp(s - s.mean(1, keepdims=True))), "not the row's largest"),
        (lambda s: softmax(s / np.abs(s).max()), "divided by the largest"),
        (lambda s: _shares(s - s.min(1, keepdims=True)), "no exponential"),
    ],
    "6.4": [
        (lambda q, k, v: softmax(q @ k.T) @ v, "not divided"),
        (lambda q, k, v: scores(q, k) @ v, "softmax is missing"),
        (lambda q, k, v: v[scores(q, k).argmax(1)], "best value alone"),
        (lambda q, k, v: softmax(scores(q, k)), "shape"),
        (lambda q, k, v: len(k) * attention(q, k, v), "outside of the values"),
        (lambda q, k, v: softmax(scores(q, k).T).T @ v, "over the queries"),
        (lambda q, k, v: np.exp(scores(q, k)) @ v, "no weight yet"),
        (lambda q, k, v: np.exp(s := scores(q, k)) / np.exp(s).sum() @ v, "over the whole array"),
        (lambda q, k, v: _shares(scores(q, k)) @ v, "no exponential"),
        (lambda q, k, v: softmax(q @ k.T / 8) @ v, "root of 64 alone"),
    ],
    "6.5": [
        (lambda size, count, seed: np.var(_products(size, count, seed)), "variance"),
        (lambda size, count, seed: np.std(_products(size, count, seed)) / size**0.5, "before"),
        (
            lambda size, count, seed: np.std(
                (np.random.default_rng(seed).normal(size=(count, size)) ** 2).sum(1)
            ),
            "same one",
        ),
        (lambda size, count, seed: _products(size, count, seed), "one number"),
        (lambda size, count, seed: _normal(seed, 2, count, size).prod(0).std(), "a sum of them"),
        (lambda size, count, seed: np.sqrt(size), "nothing was drawn"),
        (lambda size, count, seed: _normal(seed, 2, size, count).prod(0).sum(-1).std(), "it has `size`"),
        (lambda size, count, seed: _normal(seed, count, size).sum(1).std(), "no key is there"),
        (lambda size, count, seed: spread(size, count, 0), "the seed is not used"),
        (lambda size, count, seed: _normal(seed + 1, 2, count, size).prod(0).sum(1).std(), "near"),
        (lambda size, count, seed: np.std(np.matmul(*_columns(size, count, seed))), "every key"),
    ],
    "6.6": [
        (lambda x, h: x.reshape(h, len(x), -1), "mixed up"),
        (lambda x, h: x.reshape(len(x), h, -1), "shape"),
        (lambda x, h: np.stack([x[:, i::h] for i in range(h)]), "every n-th"),
        (lambda x, h: split_heads(x, h)[::-1], "reversed"),
    ],
    "6.7": [
        (lambda p: np.unravel_index(p[..., 0].mean(-1).argmax(), p.shape[:2]), "first token"),
        (lambda p: np.unravel_index(np.diagonal(p, 0, 2, 3).mean(-1).argmax(), p.shape[:2]), "itself"),
        (lambda p: (0, 99), "no head 0.99"),
        (lambda p: 7, "two whole numbers"),
        (lambda p: (29, 8), "another has more"),
        (lambda p: (16, 0), "the same head for all patterns"),
        (lambda p: previous_token_head(p)[::-1], "exchanged"),
        (lambda p: _at(p[:, :, -1, -2]), "only the last token"),
        (lambda p: _at(p.max((-1, -2))), "all heads are equal there"),
        (lambda p: _at(np.diagonal(p, -1, 2, 3).min(-1)), "another has more"),
        (lambda p: _at(np.median(np.diagonal(p, -1, 2, 3), -1)), "another has more"),
        (lambda p: _at(np.diagonal(p, -1, 2, 3).max(-1)), "largest single weight"),
    ],
}
