"""Chapter 9: solutions, and wrong answers with words of the hint that each must get."""

import math

import numpy as np


def angles(positions, size, base):
    return np.outer(positions, [base ** (-2 * i / size) for i in range(size // 2)])


def rotate(x, angles):
    half = x.shape[1] // 2
    made = np.zeros_like(x)
    for i in range(half):
        c, s = np.cos(angles[:, i]), np.sin(angles[:, i])
        made[:, i] = x[:, i] * c - x[:, i + half] * s
        made[:, i + half] = x[:, i] * s + x[:, i + half] * c
    return made


def score_by_distance(q, k, distances, base):
    at = 5000
    query = rotate(q[None], angles([at], len(q), base))[0]
    keys = rotate(np.tile(k, (len(distances), 1)), angles(at - np.asarray(distances), len(k), base))
    return keys @ query / math.sqrt(len(q))


def to_half_split(weight):
    order = [*range(0, len(weight), 2), *range(1, len(weight), 2)]
    return weight[order]


def yarn_frequencies(size, base, factor, original):
    def pair(turns):
        return size * math.log(original / (2 * math.pi * turns)) / (2 * math.log(base))

    low, high = max(math.floor(pair(32)), 0), min(math.ceil(pair(1)), size - 1)
    found = []
    for i in range(size // 2):
        s = min(max((i - low) / (high - low), 0), 1)
        f = base ** (-2 * i / size)
        found.append((1 - s) * f + s * f / factor)
    return np.array(found)


def longest_turn(size, base):
    return 2 * math.pi * base ** ((size - 2) / size)


SOLUTIONS = {
    "9.1": angles,
    "9.2": rotate,
    "9.3": score_by_distance,
    "9.4": to_half_split,
    "9.5": yarn_frequencies,
    "9.6": longest_turn,
}
WRONG = {
    "9.1": [
        (lambda p, k, b: np.outer(p, b ** (-np.arange(k // 2) / k)), "-2i/size"),
        (lambda p, k, b: np.outer(p, b ** (2 * np.arange(k // 2) / k)), "wrong sign"),
        (lambda p, k, b: np.outer(p + 1, b ** (-2 * np.arange(k // 2) / k)), "position 0"),
        (lambda p, k, b: np.outer(p, b ** (-2 * np.arange(k) / k)), "shape"),
    ],
    "9.2": [
        (lambda x, a: rotate(x, -a), "clockwise"),
        (lambda x, a: rotate(x, np.degrees(a)), "differs"),
        (lambda x, a: 2 * rotate(x, a), "length of a vector"),
        (lambda x, a: rotate(x, a[:, ::-1]), "differs"),
        (lambda x, a: x[:, : x.shape[1] // 2] * np.cos(a), "shape"),
    ],
    "9.3": [
        (lambda q, k, d, b: score_by_distance(q, k, -d, b), "ahead of the query"),
        (lambda q, k, d, b: score_by_distance(q, k, d, b) * len(q) ** 0.5, "root of n"),
        (lambda q, k, d, b: score_by_distance(q, k, d + 1, b), "distance 0"),
        (lambda q, k, d, b: score_by_distance(q, k, d, b).sum(), "shape"),
    ],
    "9.4": [
        (lambda w: w, "nothing is permuted"),
        (lambda w: w.reshape(2, -1, w.shape[1]).swapaxes(0, 1).reshape(w.shape), "other way"),
        (lambda w: np.concatenate([w[1::2], w[0::2]]), "the second numbers of the pairs"),
        (lambda w: np.concatenate([w[0::2], w[0::2]]), "appear once"),
    ],
    "9.5": [
        (lambda k, b, f, o: angles([1], k, b)[0] / f, "position interpolation"),
        (lambda k, b, f, o: angles([1], k, b)[0], "no pair is slowed"),
        (lambda k, b, f, o: yarn_frequencies(k, b, f, o) * 2, "fastest pair should keep"),
        (lambda k, b, f, o: np.where(np.arange(k // 2) < k // 4, 1, 1 / f) * angles([1], k, b)[0], "differs"),
    ],
    "9.6": [
        (lambda k, b: b ** ((k - 2) / k), "2 pi radians"),
        (lambda k, b: 2 * math.pi * b, "size/2 - 1"),
        (lambda k, b: 2 * math.pi, "fastest pair"),
        (lambda k, b: 360 * b ** ((k - 2) / k), "a turn is 2 pi radians, not 360"),
    ],
}
