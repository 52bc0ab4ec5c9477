"""More faults that newcomers make in chapters 8 and 9: by exercise, each hint with the function that has it.

A function gets the library's own as its first argument, ``right``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cutaway.course.mistakes_text import Faults
from cutaway.course.mistakes_vectors import sigmoid


def _silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def _over(x: np.ndarray, size: Any, weight: np.ndarray) -> np.ndarray:
    return x / size * weight


def _norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return _over(x, np.sqrt((x**2).mean(-1, keepdims=True) + eps), weight)


def _rotated(x: np.ndarray, a: np.ndarray, mix: Callable[..., tuple[Any, Any]]) -> np.ndarray:
    return np.concatenate(mix(*np.split(x, 2, 1), np.cos(a), np.sin(a)), 1)


def _turning(turns: float, size: int, base: float, original: float, log: Any = math.log) -> float:
    """The pair of YaRN that makes so many turns within the original context."""
    return size * log(original / (2 * math.pi * turns)) / (2 * math.log(base))


def _yarn(
    size: int,
    base: float,
    factor: float,
    original: int,
    pair: Callable[..., float] = _turning,
    whole: tuple[Callable[[float], float], ...] = (math.floor, math.ceil),
    turns: tuple[int, int] = (32, 1),
    kept: Callable[..., tuple[float, float]] = lambda low, high, size: (max(low, 0), min(high, size - 1)),
    ramp: Callable[[np.ndarray], np.ndarray] = lambda s: np.clip(s, 0, 1),
) -> np.ndarray:
    """YaRN, of which a part may be another one."""
    ends = (own(pair(n, size, base, original)) for n, own in zip(turns, whole, strict=True))
    low, high = kept(*ends, size)
    plain = base ** (-2 * np.arange(size // 2) / size)
    slowed = ramp((np.arange(size // 2) - low) / np.float64(high - low))
    return (1 - slowed) * plain + slowed * plain / factor


def _changed(**parts: Any) -> Callable[..., np.ndarray]:
    return lambda right, *given: _yarn(*given, **parts)


def _halves(x: np.ndarray) -> np.ndarray:
    """The numbers of pairs that are neighbours, as two halves."""
    return np.concatenate([x[..., 0::2], x[..., 1::2]], -1)


def _softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum()


BLOCKS: Faults = {
    "8.1": {
        "the mean is over the tokens: it is over a vector's own numbers": lambda right, x, w, e: _over(
            x, np.sqrt((x**2).mean(0) + e), w
        ),
        "1 is added to the weight": lambda right, x, w, e: right(x, w + 1, e),
        "the weight is missing": lambda right, x, w, e: right(x, np.ones_like(w), e),
        "that is the standard deviation: the mean is not taken off": lambda right, x, w, e: _over(
            x, x.std(1, keepdims=True) + e, w
        ),
        "it is the mean without signs: squares, their mean, its root": lambda right, x, w, e: _over(
            x, np.abs(x).mean(1, keepdims=True) + e, w
        ),
        "eps is missing": lambda right, x, w, e: right(x, w, 0),
        "it divides by the weight: it multiplies": lambda right, x, w, e: right(x, 1 / w, e),
        "eps is added to the sum of squares, and not to their mean": lambda right, x, w, e: right(
            x, w, e / x.shape[1]
        ),
        "it is the square of the mean: the mean of the squares is another number": lambda right, x, w, e: (
            _over(x, np.sqrt(x.mean(1, keepdims=True) ** 2 + e), w)
        ),
        "that is the root of the variance: the mean is not taken off": lambda right, x, w, e: _over(
            x, np.sqrt(x.var(1, keepdims=True) + e), w
        ),
        "eps is added to the result: it is there against a division by 0": lambda right, x, w, e: (
            right(x, w, 0) + e
        ),
        "one norm divides all vectors: each has a size of its own": lambda right, x, w, e: _over(
            x, np.linalg.norm(x), w
        ),
    },
    "8.2": {
        "silu is missing: gate and up are multiplied as they are": lambda right, x, g, u, d: (
            ((x @ g.T) * (x @ u.T)) @ d.T
        ),
        "that is GELU: silu is z / (1 + e^-z)": lambda right, x, g, u, d: (
            (x @ g.T * (1 + np.tanh(0.79788 * (x @ g.T + 0.044715 * (x @ g.T) ** 3))) / 2 * (x @ u.T)) @ d.T
        ),
        "up is missing": lambda right, x, g, u, d: _silu(x @ g.T) @ d.T,
        "x is added: the block does that, and not the MLP": lambda right, x, g, u, d: x + right(x, g, u, d),
        "silu is of the gate alone, and not of the product": lambda right, x, g, u, d: (
            _silu((x @ g.T) * (x @ u.T)) @ d.T
        ),
        "that is the tanh: silu is z / (1 + e^-z)": lambda right, x, g, u, d: (
            (np.tanh(x @ g.T) * (x @ u.T)) @ d.T
        ),
        "the sign of the exponent is wrong: e^-z": lambda right, x, g, u, d: (
            (x @ g.T * sigmoid(-(x @ g.T)) * (x @ u.T)) @ d.T
        ),
    },
    "8.3": {
        "the second residual is missing: the MLP adds to the stream": lambda right, x, n, a, m, p: p(
            m(x + a(n(x)))
        ),
        "the norms are missing": lambda right, x, n, a, m, p: x + a(x) + p(x + a(x)),
        "attention comes first, then the MLP": lambda right, x, n, a, m, p: x + p(m(x)) + a(n(x + p(m(x)))),
        "what attention added is lost: the MLP adds to the new stream": lambda right, x, n, a, m, p: (
            x + p(m(x + a(n(x))))
        ),
        "the norms are exchanged": lambda right, x, n, a, m, p: right(x, m, a, n, p),
        "the MLP is missing": lambda right, x, n, a, m, p: x + a(n(x)),
        "the first norm is used twice: the MLP has its own": lambda right, x, n, a, m, p: right(
            x, n, a, n, p
        ),
        "the MLP reads what attention gave alone: it reads the stream": lambda right, x, n, a, m, p: (
            x + a(n(x)) + p(m(a(n(x))))
        ),
        "each norm comes after its layer: a layer reads through its norm": lambda right, x, n, a, m, p: right(
            x, a, n, p, m
        ),
        "what attention gave is not added: the MLP alone reads it": lambda right, x, n, a, m, p: (
            x + p(m(a(n(x))))
        ),
        "the first residual is missing: attention adds to the stream": lambda right, x, n, a, m, p: (
            a(n(x)) + p(m(a(n(x))))
        ),
        "the second norm is missing: the MLP reads the stream as it is": lambda right, x, n, a, m, p: right(
            x, n, a, lambda y: y, p
        ),
        "the first norm is missing: attention reads the stream as it is": lambda right, x, n, a, m, p: right(
            x, lambda y: y, a, m, p
        ),
        "norm_1 changes the stream itself: only what is read is normed": lambda right, x, n, a, m, p: (
            n(x) + a(n(x)) + p(m(n(x) + a(n(x))))
        ),
        "norm_2 changes the stream itself: only what the MLP reads is normed": lambda right, x, n, a, m, p: (
            m(x + a(n(x))) + p(m(x + a(n(x))))
        ),
    },
    "8.4": {
        "the last norm is missing": lambda right, v, d, *g: right(v, d, *g) - d,
        "a layer has two norms": lambda right, v, d, y, *g: right(v, d, y, *g) - y * d,
        "the embedding is missing": lambda right, v, d, *g: right(v, d, *g) - v * d,
        "there are no biases": lambda right, v, d, y, h, g, s, n, t: (
            right(v, d, y, h, g, s, n, t) + y * (2 * n + d + 2 * h * s)
        ),
        "one layer is counted: there are `layers`": lambda right, v, d, y, *g: right(v, d, 1, *g),
        "W_q and W_o are width by heads times size": lambda right, v, d, y, h, g, s, n, t: (
            right(v, d, y, h, g, s, n, t) + 2 * y * d * (d - h * s)
        ),
        "W_k and W_v are two matrices": lambda right, v, d, y, h, g, s, n, t: (
            right(v, d, y, h, g, s, n, t) - y * d * g * s
        ),
        "the norms of the layers are missing": lambda right, v, d, y, *g: right(v, d, y, *g) - 2 * y * d,
        "a layer has more norms than two": lambda right, v, d, y, *g: right(v, d, y, *g) + 2 * y * d,
        "the last norm is counted in each layer: the model has it once": lambda right, v, d, y, *g: (
            right(v, d, y, *g) + (y - 1) * d
        ),
        "attention is counted as 4 width^2, without heads and groups": lambda right, v, d, y, h, g, s, n, t: (
            right(v, d, y, h, g, s, n, t) + y * (4 * d * d - 2 * d * s * (h + g))
        ),
        "W_o is counted as width^2: it need not be square": lambda right, v, d, y, h, g, s, n, t: (
            right(v, d, y, h, g, s, n, t) + y * d * (d - h * s)
        ),
        "groups are multiplied by heads: `groups` is a layer's count": lambda right, v, d, y, h, g, s, n, t: (
            right(v, d, y, h, h * g, s, n, t)
        ),
    },
    "8.5": {
        "it multiplies by r: the scale is alpha / r": lambda right, x, w, a, b, s: right(
            x, w, a, b, s * len(a) ** 2
        ),
        "the scale is alpha over the width: r is the number of rows of a": lambda right, x, w, a, b, s: right(
            x, w, a, b, s * len(a) / x.shape[1]
        ),
        "the scale is alpha over the rows of b: r is the number of rows of a": lambda right, x, w, a, b, s: (
            right(x, w, a, b, s * len(a) / len(b))
        ),
        "the weight is scaled, and the addition is not": lambda right, x, w, a, b, s: (
            x @ w.T * s / len(a) + x @ a.T @ b.T
        ),
        "the scale is upside down": lambda right, x, w, a, b, s: right(x, w, a, b, len(a) ** 2 / s),
    },
    "8.6": {
        "the scores are divided by their sum: a softmax takes e to the score first": lambda right, s, k: (
            right(s, k)[0],
            (chosen := np.take_along_axis(s, right(s, k)[0], 1)) / chosen.sum(1, keepdims=True),
        ),
        "the two arrays are exchanged": lambda right, s, k: right(s, k)[::-1],
        "the experts are numbered from 1": lambda right, s, k: (right(s, k)[0] + 1, right(s, k)[1]),
        "those are the chosen scores: the experts' numbers are asked for": lambda right, s, k: (
            -np.sort(-s, axis=1)[:, :k],
            right(s, k)[1],
        ),
    },
    "8.7": {
        "eps is missing": lambda right, s, n, u, e: right(s, n, u, 0),
        "the norm is over the layers: each layer's vector has its own": lambda right, s, n, u, e: (
            _over(s, np.sqrt((s**2).mean(0) + e), n) @ u.T
        ),
        "it divides by the length: it is the mean of squares, not their sum": lambda right, s, n, u, e: (
            _over(s, np.linalg.norm(s, axis=1, keepdims=True), n) @ u.T
        ),
        "the norm comes before the unembedding": lambda right, s, n, u, e: _norm(s @ u.T, np.ones(len(u)), e),
        "the layers are added up: the stream is a sum already": lambda right, s, n, u, e: right(
            np.cumsum(s, 0), n, u, e
        ),
        "the mean is taken off: that is layer norm": lambda right, s, n, u, e: right(
            s - s.mean(1, keepdims=True), n, u, e
        ),
        "one mean is taken over all layers: each layer's vector has its own": lambda right, s, n, u, e: (
            _over(s, np.sqrt((s**2).mean() + e), n) @ u.T
        ),
        "only the last layer's vector is normed": lambda right, s, n, u, e: np.concatenate(
            [s[:-1] @ u.T, right(s[-1:], n, u, e)]
        ),
        "the root is missing in the norm": lambda right, s, n, u, e: (
            _over(s, (s**2).mean(1, keepdims=True) + e, n) @ u.T
        ),
        "the norm has the sum of squares in it, and not their mean": lambda right, s, n, u, e: (
            _over(s, np.sqrt((s**2).sum(1, keepdims=True) + e), n) @ u.T
        ),
        "eps is added after the root": lambda right, s, n, u, e: (
            _over(s, np.sqrt((s**2).mean(1, keepdims=True)) + e, n) @ u.T
        ),
    },
    "8.8": {
        "that is how many operations there are: for each byte of the weights": lambda right, r, c, t, b: (
            2 * r * c * t
        ),
        "that is how many bytes there are: operations for each of them": lambda right, r, c, t, b: (
            r * c * b / 8
        ),
        "it is a whole division": lambda right, r, c, t, b: right(r, c, t, b) // 1,
        "the bits are multiplied by 8: bytes are larger than bits": lambda right, r, c, t, b: right(
            r, c, t, 64 * b
        ),
        "the bytes of a weight are upside down: more bits are more bytes": lambda right, r, c, t, b: (
            t * b / 4
        ),
        "the vectors' bytes are counted too: only the weights' are": lambda right, r, c, t, b: (
            2 * r * c * t / ((r * c + (r + c) * t) * b / 8)
        ),
        "the bytes of what comes in are counted too: only the weights' are": lambda right, r, c, t, b: (
            2 * r * c * t / ((r * c + c * t) * b / 8)
        ),
        "all operations are divided by the bytes of one weight": lambda right, r, c, t, b: (
            r * c * right(r, c, t, b)
        ),
    },
    "9.1": {
        "the base is given: it is not always 10,000": lambda right, p, k, b: right(p, k, 10_000.0),
        "whole turns are taken off: the angle itself is asked for": lambda right, p, k, b: (
            right(p, k, b) % (2 * math.pi)
        ),
        "the exponent of the last pair is -1: pair i has -2i/size": lambda right, p, k, b: np.outer(
            p, b ** -np.linspace(0, 1, k // 2)
        ),
        "positions are counted: each token has the position that is given": lambda right, p, k, b: right(
            np.arange(len(p)), k, b
        ),
    },
    "9.2": {
        "the new first number is in the second: both are made of the old ones": lambda right, x, a: _rotated(
            x, a, lambda u, v, c, s: (u * c - v * s, (u * c - v * s) * s + v * c)
        ),
        "pairs are read as neighbours and written as halves: both are i and i + n/2": lambda right, x, a: (
            right(_halves(x), a)
        ),
        "all vectors rotate by the angles of the first": lambda right, x, a: right(x, a[:1]),
        "the angles are radians: they are made radians again": lambda right, x, a: right(x, np.radians(a)),
        "sine and cosine are exchanged": lambda right, x, a: _rotated(
            x, a, lambda u, v, c, s: (u * s - v * c, u * c + v * s)
        ),
        "the two halves of the result are exchanged": lambda right, x, a: np.roll(
            right(x, a), x.shape[1] // 2, 1
        ),
        "it is rotated twice": lambda right, x, a: right(x, 2 * a),
        "the halves of the result are interleaved: number i and i + n/2 are a pair": lambda right, x, a: (
            right(x, a).reshape(len(x), 2, -1).swapaxes(1, 2).reshape(x.shape)
        ),
    },
    "9.3": {
        "the base is given: it is not always 10,000": lambda right, q, k, d, b: right(q, k, d, 10_000.0),
        "the angle is that of twice the distance": lambda right, q, k, d, b: right(
            q, k, 2 * np.asarray(d), b
        ),
        "it is divided by n: the root of n is asked for": lambda right, q, k, d, b: (
            right(q, k, d, b) / math.sqrt(len(q))
        ),
        "it is divided by the root of n/2: n counts both numbers of a pair": lambda right, q, k, d, b: (
            right(q, k, d, b) * math.sqrt(2)
        ),
        "that is a softmax: the scores before it are asked for": lambda right, *g: _softmax(right(*g)),
        "pairs are neighbours (2i, 2i + 1): here they are i and i + n/2": lambda right, q, k, d, b: right(
            _halves(q), _halves(k), d, b
        ),
        "the sine's part is missing: a rotated pair is made of both": lambda right, q, k, d, b: (
            (right(q, k, d, b) + right(q, k, -np.asarray(d), b)) / 2
        ),
    },
    "9.4": {
        "the second numbers of the pairs come first": lambda right, w: np.concatenate([w[1::2], w[0::2]]),
        "neighbours are exchanged: the first numbers of all pairs come first": lambda right, w: w[
            np.arange(len(w)) ^ 1
        ],
        "the halves are exchanged: the rows are interleaved": lambda right, w: np.roll(w, len(w) // 2, 0),
    },
    "9.5": {
        "the pairs are not made whole: low is rounded down, high up": _changed(whole=(float, float)),
        "low and high are rounded to the nearest: low down, high up": _changed(whole=(round, round)),
        "the logarithm of the turns is to base 10, and that of the base natural": _changed(
            pair=lambda *g: _turning(*g, log=math.log10)
        ),
        "a turn is 2 pi radians, which is missing": _changed(
            pair=lambda r, k, b, n: _turning(r, k, b, n * 2 * math.pi)
        ),
        "pairs are slowed or not: between low and high they are slowed in part": _changed(
            ramp=lambda s: (s >= 1).astype(float)
        ),
        "s is not kept within 0 and 1": _changed(ramp=lambda s: s),
        "low and high are not kept within 0 and size - 1": _changed(kept=lambda low, high, size: (low, high)),
        "high is kept within size - 1, and not size/2 - 1": _changed(
            kept=lambda low, high, size: (max(low, 0), min(high, size // 2 - 1))
        ),
        "low is the pair of 32 turns, high that of 1": _changed(turns=(1, 32)),
        "turns are those of the original context, not of the longer one": lambda right, k, b, f, n: _yarn(
            k, b, f, n, pair=lambda r, k, b, n: _turning(r, k, b, n * f)
        ),
        "2 pi r divides as a whole: mind the brackets": _changed(
            pair=lambda r, k, b, n: _turning(r, k, b, n * (math.pi * r) ** 2)
        ),
        "2 ln base divides as a whole: mind the brackets": _changed(
            pair=lambda r, k, b, n: _turning(r, k, b, n) * math.log(b) ** 2
        ),
    },
    "9.6": {
        "that is the angle of one token: the tokens of a whole turn are asked for": lambda right, k, b: (
            2 * math.pi / right(k, b)
        ),
        "it is rounded": lambda right, k, b: float(int(right(k, b))),
        "it is rounded up": lambda right, k, b: math.ceil(right(k, b)),
        "there are size/2 pairs: the last is number size/2 - 1, and not size - 1": lambda right, k, b: (
            2 * math.pi * b ** (2 * (k - 1) / k)
        ),
        "a turn is 2 pi radians, not 360 degrees": lambda right, k, b: right(k, b) * 180 / math.pi,
        "it is divided by 2 pi twice": lambda right, k, b: right(k, b) / (2 * math.pi) ** 2,
        "the slowest pair is number size/2 - 1": lambda right, k, b: 2 * math.pi * b ** ((k - 1) / k),
    },
}
