"""Chapter 8: solutions, and wrong answers with words of the hint that each must get."""

import numpy as np


def rms_norm(x, weight, eps):
    return np.stack([weight * row / (np.mean(row**2) + eps) ** 0.5 for row in x])


def silu(x):
    return x / (1 + np.exp(-x))


def swiglu(x, gate, up, down):
    return np.stack([down @ (silu(gate @ row) * (up @ row)) for row in x])


def block(x, norm_1, attention, norm_2, mlp):
    middle = x + attention(norm_1(x))
    return middle + mlp(norm_2(middle))


def parameters(vocab, width, layers, heads, groups, size, neurons, tied):
    q = o = width * heads * size
    k = v = width * groups * size
    layer = q + k + v + o + 3 * width * neurons + width + width
    return vocab * width + layers * layer + width + (0 if tied else vocab * width)


def adapted(x, weight, a, b, alpha):
    return np.stack([weight @ row + alpha / a.shape[0] * (b @ (a @ row)) for row in x])


def route(scores, k):
    experts, weights = [], []
    for row in scores:
        best = sorted(range(len(row)), key=lambda e: -row[e])[:k]
        e = np.exp([row[one] for one in best])
        experts.append(best)
        weights.append(e / e.sum())
    return np.array(experts), np.array(weights)


def logit_lens(stream, norm, unembed, eps):
    return np.array([unembed @ row for row in rms_norm(stream, norm, eps)])


def intensity(rows, columns, tokens, bits):
    return 16 * tokens / bits


SOLUTIONS = {
    "8.1": rms_norm,
    "8.2": swiglu,
    "8.3": block,
    "8.4": parameters,
    "8.5": adapted,
    "8.6": route,
    "8.7": logit_lens,
    "8.8": intensity,
}
WRONG = {
    "8.1": [
        (lambda x, w, e: rms_norm(x, w, e / x.shape[1]) / x.shape[1] ** 0.5, "root of the mean"),
        (lambda x, w, e: rms_norm(x - x.mean(1, keepdims=True), w, e), "layer norm"),
        (lambda x, w, e: rms_norm(x, np.ones_like(w), e), "the weight is"),
        (lambda x, w, e: x / np.sqrt(np.mean(x**2) + e) * w, "each has its own"),
        (lambda x, w, e: rms_norm(x, w, e)[0], "shape"),
        (lambda x, w, e: w * x / (x.mean(1, keepdims=True) ** 2 + e) ** 0.5, "square of the mean"),
        (lambda x, w, e: w * x / (np.var(x, axis=-1) + e)[:, None] ** 0.5, "root of the variance"),
        (lambda x, w, e: w * x / np.mean(x**2, -1)[:, None] ** 0.5 + e, "added to the result"),
        (lambda x, w, e: w * x / (x**2).sum() ** 0.5, "one norm divides all"),
        (lambda x, w, e: w * x / ((x**2).sum() + e) ** 0.5, "divided by one number"),
        (lambda x, w, e: w * x / (np.abs(x.mean(1, keepdims=True)) + e), "should have mean 1"),
        (lambda x, w, e: w * x / (np.linalg.norm(x, axis=1, keepdims=True) + e), "should have mean 1"),
    ],
    "8.2": [
        (lambda x, g, u, d: swiglu(x, u, g, d), "not of up"),
        (lambda x, g, u, d: (silu(x @ g.T) + x @ u.T) @ d.T, "not added"),
        (lambda x, g, u, d: (np.maximum(x @ g.T, 0) * (x @ u.T)) @ d.T, "ReLU"),
        (lambda x, g, u, d: silu(x @ g.T) * (x @ u.T), "shape"),
        (
            lambda x, g, u, d: silu(x @ g) * (x @ u),
            "@, 2 columns meet 3 rows: is one not transposed? (arguments: array[1, 2], array[3, 2], array[3",
        ),
    ],
    "8.3": [
        (lambda x, n, a, m, p: p(m(a(n(x)))), "residual is missing"),
        (lambda x, n, a, m, p: x + a(n(x)) + p(m(x)), "parallel block"),
        (lambda x, n, a, m, p: m(n(x + a(x)) + p(n(x + a(x)))), "post-norm"),
        (lambda x, n, a, m, p: block(x, m, a, n, p), "the norms are"),
        (lambda x, n, a, m, p: x + a(n(x)) + p(m(a(n(x)))), "what attention gave alone"),
        (lambda x, n, a, m, p: x + n(a(x)) + m(p(x + n(a(x)))), "each norm comes after its layer"),
        (lambda x, n, a, m, p: x + p(m(a(n(x)))), "is not added"),
        (lambda x, n, a, m, p: a(n(x)) + p(m(a(n(x)))), "first residual is missing"),
        (lambda x, n, a, m, p: x + a(n(x)) + p(x + a(n(x))), "second norm is missing"),
        (lambda x, n, a, m, p: m(x + a(n(x))) + p(m(x + a(n(x)))), "norm_2 changes the stream"),
        (lambda x, n, a, m, p: block(n(x), lambda y: y, a, m, p), "norm_1 changes the stream"),
    ],
    "8.4": [
        (lambda v, w, y, h, g, s, n, t: parameters(v, w, y, h, g, s, n, not t), "unembedding"),
        (lambda v, w, y, h, g, s, n, t: parameters(v, w, y, h, h, s, n, t), "groups"),
        (lambda v, w, y, h, g, s, n, t: parameters(v, w, y, h, g, s, n, t) - y * w * n, "three matrices"),
        (lambda v, w, y, h, g, s, n, t: parameters(v, w, y, h, g, s, n, t) / 1e6, "differs"),
        (
            lambda v, w, y, *g: (
                y * (parameters(v, w, 1, *g) - parameters(v, w, 0, *g) - 2 * w) + w + v * w * (2 - g[-1])
            ),
            "norms of the layers",
        ),
        (lambda v, w, y, h, g, s, n, t: parameters(v, w, y, h, g, s, n, t) + y * 2 * w, "more norms"),
        (lambda v, w, y, h, g, s, n, t: parameters(v, w, y, h, h * g, s, n, t), "multiplied by heads"),
    ],
    "8.5": [
        (lambda x, w, a, b, s: x @ (w + s * b @ a).T, "alpha / r"),
        (lambda x, w, a, b, s: x @ (s / len(a) * b @ a).T, "on top"),
        (lambda x, w, a, b, s: x @ (w + b @ a).T, "scale is missing"),
        (lambda x, w, a, b, s: x @ (w + s / x.shape[1] * b @ a).T, "the scale is alpha over the"),
        (lambda x, w, a, b, s: x @ (w + len(a) / s * b @ a).T, "upside down"),
        (lambda x, w, a, b, s: x @ (w + s / len(a) * b @ a).T, "as large as the weight made on the way?"),
        (lambda x, w, a, b, s: x @ w.T + s / len(a) * (x @ (b @ a).T), "MB are asked for"),
    ],
    "8.6": [
        (lambda s, k: (route(s, k)[0], np.exp(s[:, :k])), "sum to 1"),
        (lambda s, k: tuple(part[:, ::-1] for part in route(s, k)), "largest comes first"),
        (lambda s, k: route(-s, k), "differs"),
        (lambda s, k: route(s, k)[0], "2 parts"),
        (lambda s, k: (route(s, k)[0], np.ones((len(s), k)) / k), "alike"),
        (lambda s, k: (route(s, k)[1], route(s, k)[0]), "exchanged"),
        (lambda s, k: (1 + route(s, k)[0], route(s, k)[1]), "numbered from 1"),
        (lambda s, k: (np.sort(s)[:, ::-1][:, :k], route(s, k)[1]), "chosen scores"),
    ],
    "8.7": [
        (lambda s, n, u, e: s @ u.T, "final norm is missing"),
        (lambda s, n, u, e: logit_lens(s, np.ones_like(n), u, e), "weight is missing"),
        (lambda s, n, u, e: logit_lens(s[-1:], n, u, e), "shape"),
        (lambda s, n, u, e: logit_lens(s, n, u, e).argmax(1), "shape"),
        (lambda s, n, u, e: s / (np.mean(s**2) + e) ** 0.5 * n @ u.T, "over all layers"),
        (lambda s, n, u, e: np.vstack([s[:-1] @ u.T, logit_lens(s[-1:], n, u, e)]), "only the last layer's"),
        (lambda s, n, u, e: s / (np.mean(s**2, 1)[:, None] + e) * n @ u.T, "the root is missing"),
        (lambda s, n, u, e: s / (np.sum(s**2, 1)[:, None] + e) ** 0.5 * n @ u.T, "sum of squares"),
        (lambda s, n, u, e: s / (np.mean(s**2, 1)[:, None] ** 0.5 + e) * n @ u.T, "after the root"),
        (lambda s, n, u, e: s / (np.sum(s**2) + e) ** 0.5 * n @ u.T, "divided by one number"),
        (lambda s, n, u, e: s / (np.linalg.norm(s, axis=1)[:, None] + e) * n @ u.T, "should have mean 1"),
    ],
    "8.8": [
        (lambda r, c, t, b: 8 * t / b, "a product and a sum"),
        (lambda r, c, t, b: 2 * t / b, "eight"),
        (lambda r, c, t, b: b / (16 * t), "upside down"),
        (lambda r, c, t, b: 16 / b, "once for all tokens"),
        (lambda r, c, t, b: r * c * t, "differs"),
        (lambda r, c, t, b: 2 * t / (b * 8), "multiplied by 8"),
        (lambda r, c, t, b: 2 * t / (8 / b), "a weight are upside down"),
        (lambda r, c, t, b: 2 * r * c * t / (b / 8 * (r * c + t * (r + c))), "vectors' bytes are counted"),
        (lambda r, c, t, b: 2 * r * c * t / (b / 8 * r * (c + t)), "are other bytes counted"),
        (lambda r, c, t, b: 2 * r * c * t / (b / 8), "bytes of one weight"),
    ],
}
