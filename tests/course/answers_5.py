"""Chapter 5: solutions, and wrong answers with words of the hint that each must get."""

from collections import Counter

import numpy as np


def look_up(table, ids):
    return np.stack([table[id] for id in ids])


def unit(x):
    return x / np.sqrt(np.sum(x**2, axis=1, keepdims=True))


def cosines(a, b):
    return unit(a) @ unit(b).T


def neighbours(words, window):
    counts = Counter()
    for i in range(len(words)):
        for j in range(len(words)):
            if i != j and abs(i - j) <= window:
                counts[words[i], words[j]] += 1
    return dict(counts)


def ppmi(counts):
    found = np.zeros(counts.shape)
    for i, row in enumerate(counts):
        for j, n in enumerate(row):
            if n > 0:
                found[i, j] = max(0.0, np.log(n * counts.sum() / (row.sum() * counts[:, j].sum())))
    return found


def step(centre, context, negatives, rate):
    def gap(vector, wanted):
        return wanted - 1 / (1 + np.exp(-(vector @ centre)))

    new = centre + rate * gap(context, 1) * context
    for one in negatives:
        new = new + rate * gap(one, 0) * one
    others = np.stack([one + rate * gap(one, 0) * centre for one in negatives])
    return new, context + rate * gap(context, 1) * centre, others


def analogy(vectors, a, b, c):
    u = unit(vectors)
    target = u[b] - u[a] + u[c]
    return max((n for n in range(len(u)) if n not in (a, b, c)), key=lambda n: u[n] @ target)


def nearest(table, row, count):
    likeness = cosines(table, table[row : row + 1])[:, 0]
    order = sorted(range(len(table)), key=lambda n: -likeness[n])
    return [n for n in order if n != row][:count]


SOLUTIONS = {
    "5.1": look_up,
    "5.2": cosines,
    "5.3": neighbours,
    "5.4": ppmi,
    "5.5": step,
    "5.6": analogy,
    "5.7": nearest,
}
WRONG = {
    "5.1": [
        (lambda t, i: np.eye(len(t))[i], "one-hot"),
        (lambda t, i: t[i].mean(0), "shape"),
        (lambda t, i: t[[n - 1 for n in i]], "the ids are off by one: id 0 is"),
        (lambda t, i: t[:, i].T, "columns"),
    ],
    "5.2": [
        (lambda a, b: a @ b.T, "not divided by the lengths"),
        (lambda a, b: 1 - cosines(a, b), "distance"),
        (lambda a, b: np.degrees(np.arccos(cosines(a, b))), "between -1 and 1"),
        (lambda a, b: cosines(b, a), "shape"),
    ],
    "5.3": [
        (lambda w, n: dict(Counter(zip(w, w[1:], strict=False))), "differs"),
        (lambda w, n: dict.fromkeys(neighbours(w, n), 1), "counts once"),
        (lambda w, n: neighbours(w, n - 1), "too short"),
        (lambda w, n: list(neighbours(w, n)), "type dict"),
    ],
    "5.4": [
        (lambda c: np.log(c * c.sum() / (c.sum(1, keepdims=True) * c.sum(0))), "infinite"),
        (lambda c: ppmi(c) / np.log(2), "base 2"),
        (lambda c: c * c.sum() / (c.sum(1, keepdims=True) * c.sum(0)), "logarithm is missing"),
        (lambda c: ppmi(c.T).T + 1, "differs"),
    ],
    "5.5": [
        (lambda c, o, n, r: step(c, o, n, -r), "wrong way"),
        (lambda c, o, n, r: (c, *step(c, o, n, r)[1:]), "did not move"),
        (lambda c, o, n, r: step(c, o, n, r)[:2], "3 parts"),
        (lambda c, o, n, r: step(c, o, n, 2 * r), "differs"),
    ],
    "5.6": [
        (lambda v, a, b, c: int(np.argmax(unit(v) @ (unit(v)[b] - unit(v)[a] + unit(v)[c]))), "left out"),
        (lambda v, a, b, c: analogy(v, b, a, c), "exchanged"),
        (lambda v, a, b, c: v[analogy(v, a, b, c)], "one number"),
        (lambda v, a, b, c: next(n for n in range(9) if n not in (a, b, c)), "differs"),
    ],
    "5.7": [
        (lambda t, r, k: [r, *nearest(t, r, k - 1)], "itself is left out"),
        (lambda t, r, k: nearest(t, r, k)[::-1], "comes first"),
        (lambda t, r, k: [n for n in np.argsort(-(t @ t[r])).tolist() if n != r][:k], "long rows win"),
        (lambda t, r, k: nearest(t, r, k + 1), "there is one too"),
    ],
}
