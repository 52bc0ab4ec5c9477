"""Chapter 7: solutions, and wrong answers with words of the hint that each must get."""

import math

import numpy as np


def soft(scores):
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def additive_scores(queries, keys, w, u, v):
    found = np.zeros((len(queries), len(keys)))
    for i, q in enumerate(queries):
        for j, k in enumerate(keys):
            found[i, j] = v @ np.tanh(w @ q + u @ k)
    return found


def causal_mask(length):
    return np.array([[j <= i for j in range(length)] for i in range(length)])


def window_mask(length, window):
    return np.array([[i - window < j <= i for j in range(length)] for i in range(length)])


def masked_attention(q, k, v, visible):
    scores = q @ k.T / math.sqrt(q.shape[1])
    scores[~visible] = -1e30
    return soft(scores) @ v


def grouped_attention(q, k, v):
    share = q.shape[0] // k.shape[0]
    k, v = np.repeat(k, share, 0), np.repeat(v, share, 0)
    return np.stack([masked_attention(a, b, c, causal_mask(len(a))) for a, b, c in zip(q, k, v, strict=True)])


def phi(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def linear_attention(q, k, v):
    state, total, found = np.zeros((q.shape[1], v.shape[1])), np.zeros(q.shape[1]), []
    for a, b, c in zip(phi(q), phi(k), v, strict=True):
        state, total = state + np.outer(b, c), total + b
        found.append(a @ state / (a @ total))
    return np.array(found)


def decode(x, project):
    keys, values, found = [], [], []
    for one in x:
        q, k, v = project(one)
        keys.append(k)
        values.append(v)
        found.append(soft(np.array(keys) @ q / math.sqrt(len(q))) @ np.array(values))
    return np.array(found)


def cache_bytes(kind, tokens, layers, heads, groups, size, latent):
    if kind == "mla":
        return tokens * layers * latent * 2
    return tokens * layers * {"mha": heads, "gqa": groups, "mqa": 1}[kind] * size * 2 * 2


def latent_scores(q, latents, w_k):
    moved = np.stack([one @ w for one, w in zip(q, w_k, strict=True)])
    return moved @ latents.T / math.sqrt(q.shape[2])


def induction_head(patterns, period):
    layers, heads, t, _ = patterns.shape
    means = {
        (layer, head): np.mean([patterns[layer, head, i, i - period + 1] for i in range(period, t)])
        for layer in range(layers)
        for head in range(heads)
    }
    return max(means, key=means.get)


def _slices(length, window):
    found = np.zeros((length, length), bool)
    for i, row in enumerate(found):
        row[i + 1 - window : i + 1] = True
    return found


def _unscaled(q, k, v, visible):
    return soft(np.where(visible, q @ k.T, -1e30)) @ v


def _of_features(q, k, v):
    weights = np.tril(q @ k.T)
    return weights @ v / weights.sum(-1, keepdims=True)


def _before_alone(x, project):
    keys, values, found = [], [], []
    for one in x:
        q, k, v = project(one)
        found.append(soft(np.array(keys) @ q / len(q) ** 0.5) @ np.array(values) if keys else 0 * v)
        keys.append(k)
        values.append(v)
    return np.array(found)


def _largest_weight(patterns, period):
    at = np.arange(period, 2 * period)
    return np.unravel_index(patterns[:, :, at, at - period + 1].max(-1).argmax(), patterns.shape[:2])


def _again(x, project):
    return np.array([decode(x[: i + 1], project)[-1] for i in range(len(x))])


def _after(x, project):
    q, k, v = (np.array(part) for part in zip(*map(project, x), strict=True))
    return soft(q @ k.T / math.sqrt(q.shape[1])) @ v


def _keys_first(q, latents, w_k):
    keys = np.stack([latents @ w.T for w in w_k])
    return np.stack([a @ b.T for a, b in zip(q, keys, strict=True)]) / math.sqrt(q.shape[2])


SOLUTIONS = {
    "7.1": additive_scores,
    "7.2": causal_mask,
    "7.3": window_mask,
    "7.4": masked_attention,
    "7.5": grouped_attention,
    "7.6": linear_attention,
    "7.7": decode,
    "7.8": cache_bytes,
    "7.9": latent_scores,
    "7.10": induction_head,
}
WRONG = {
    "7.1": [
        (lambda q, k, w, u, v: (q @ w.T) @ (k @ u.T).T, "Luong"),
        (lambda q, k, w, u, v: additive_scores(q, k, w, u, v).T, "shape"),
        (lambda q, k, w, u, v: np.stack([(q @ w.T + x @ u.T) @ v for x in k], 1), "tanh is missing"),
        (lambda q, k, w, u, v: soft(additive_scores(q, k, w, u, v)), "softmax is not asked"),
    ],
    "7.2": [
        (lambda n: np.triu(np.ones((n, n), bool)), "exchanged"),
        (lambda n: np.arange(n)[None] < np.arange(n)[:, None], "itself too"),
        (lambda n: ~causal_mask(n), "hidden"),
        (lambda n: np.where(causal_mask(n), 0, -np.inf), "added to scores"),
        (lambda n: np.arange(n), "shape"),
    ],
    "7.3": [
        (lambda n, w: window_mask(n, w + 1), "one token too long"),
        (lambda n, w: causal_mask(n), "nothing is left out"),
        (lambda n, w: window_mask(n, w) | window_mask(n, w).T, "both sides"),
        (lambda n, w: window_mask(n, w - 1), "one token too short"),
        (lambda n, w: window_mask(n, w).T, "exchanged"),
        (lambda n, w: np.tril(np.ones((n, n), bool), -w), "before the window"),
        (_slices, "counts from the end"),
        (lambda n, w: np.array([[i // w * w <= j <= i for j in range(n)] for i in range(n)]), "blocks"),
        (lambda n, w: window_mask(n, 2 * w), "differs"),
    ],
    "7.4": [
        (lambda q, k, v, m: soft(q @ k.T / q.shape[1] ** 0.5 * m) @ v, "e^0 is 1"),
        (lambda q, k, v, m: (soft(q @ k.T / q.shape[1] ** 0.5) * m) @ v, "after the softmax"),
        (lambda q, k, v, m: masked_attention(q, k, v, ~m | np.eye(len(q), dtype=bool)), "own value"),
        (lambda q, k, v, m: soft(q @ k.T / q.shape[1] ** 0.5) @ v, "nothing is hidden"),
        (_unscaled, "root of d"),
        (lambda q, k, v, m: masked_attention(q, k, v, causal_mask(len(q))), "the mask is given"),
        (lambda q, k, v, m: masked_attention(2 * q, k, v, m), "differs"),
    ],
    "7.5": [
        (
            lambda q, k, v: grouped_attention(
                q, np.tile(k, (len(q) // len(k), 1, 1)), np.tile(v, (len(q) // len(k), 1, 1))
            ),
            "take turns",
        ),
        (lambda q, k, v: grouped_attention(q, k[:1], v[:1]), "first group"),
        (lambda q, k, v: grouped_attention(q[: len(k)], k, v), "shape"),
        (lambda q, k, v: grouped_attention(q * q.shape[2] ** 0.5, k, v), "root of d"),
        (lambda q, k, v: grouped_attention(q, k, v[::-1]), "differs"),
    ],
    "7.6": [
        (lambda q, k, v: phi(q) @ (phi(k).T @ v) / (phi(q) @ phi(k).sum(0))[:, None], "every token is read"),
        (lambda q, k, v: grouped_attention(q[None], k[None], v[None])[0], "differs"),
        (lambda q, k, v: _unscaled(q, k, v, causal_mask(len(q))), "a softmax of the scores"),
        (lambda q, k, v: _of_features(np.exp(q), np.exp(k), v), "e^x everywhere"),
        (lambda q, k, v: _of_features(1 + q * (q > 0), 1 + k * (k > 0), v), "1 everywhere below 0"),
        (lambda q, k, v: _of_features(phi(q), k, v), "for the keys"),
        (lambda q, k, v: linear_attention(np.abs(q), k, v), "differs"),
        (lambda q, k, v: 3 * linear_attention(q, k, v), "outside of the values"),
        (lambda q, k, v: linear_attention(q, k, v)[-1], "shape"),
    ],
    "7.7": [
        (_again, "a token needs it once"),
        (_after, "comes after it"),
        (lambda x, p: decode(x, lambda one: (p(one)[0] * 2, *p(one)[1:])), "a token needs it once"),
        (lambda x, p: decode(x, p)[-1], "shape"),
        (lambda x, p: np.array([p(one)[2] for one in x]), "itself alone"),
        (lambda x, p: p(x)[2], "the vector of one token"),
        (_before_alone, "does not see itself"),
    ],
    "7.8": [
        (lambda kind, n, y, h, g, s, c: cache_bytes(kind, n, 1, h, g, s, c), "every layer"),
        (lambda kind, n, y, h, g, s, c: cache_bytes(kind, n, y, h, g, s, c) // 2, "each has 2 bytes"),
        (lambda kind, n, y, h, g, s, c: cache_bytes("mha", n, y, h, g, s, c), "differs"),
        (lambda kind, n, y, h, g, s, c: cache_bytes(kind, n, y, h, h // g, s, c), "how many heads share one"),
        (lambda kind, n, y, h, g, s, c: cache_bytes(kind, n, y, h, g, s, h * c), "of the same latent"),
        (lambda kind, n, y, h, g, s, c: 2 * cache_bytes(kind, n, y, h, g, s, c), "not 4"),
        (lambda kind, n, y, h, g, s, c: cache_bytes(kind, n, y, h, g, s, 2 * c), "kept once"),
    ],
    "7.9": [
        (_keys_first, "MB at once"),
        (lambda q, c, w: latent_scores(q, c, w) * q.shape[2] ** 0.5, "root of n"),
        (lambda q, c, w: latent_scores(q, c, w) * (q.shape[2] / c.shape[1]) ** 0.5, "latent's size"),
        (lambda q, c, w: latent_scores(q, c, np.stack([w[0]] * len(w))), "first head's"),
        (lambda q, c, w: soft(latent_scores(q, c, w)), "softmax is not asked"),
    ],
    "7.10": [
        (
            lambda p, n: np.unravel_index(p[:, :, range(n, 2 * n), range(n)].mean(-1).argmax(), p.shape[:2]),
            "same token",
        ),
        (
            lambda p, n: np.unravel_index(np.diagonal(p, -1, 2, 3).mean(-1).argmax(), p.shape[:2]),
            "token before",
        ),
        (lambda p, n: (30, 0), "no head 30.0"),
        (_largest_weight, "the mean over the second copy"),
        (lambda p, n: (0, 0), "another has more"),
        (lambda p, n: p.mean(), "two whole numbers"),
    ],
}
