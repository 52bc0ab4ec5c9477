"""Chapter 1: solutions, and wrong answers with words of the hint that each must get."""

import math

import numpy as np


def chances(logits, temperature):
    e = np.exp((logits - max(logits)) / temperature)
    return e / sum(e)


def top_p(chances, mass):
    kept, total = [], 0.0
    for id in sorted(range(len(chances)), key=lambda id: -chances[id]):
        if total >= mass:
            break
        kept.append(id)
        total += chances[id]
    return np.array([chances[id] / total if id in kept else 0.0 for id in range(len(chances))])


def likeliest(chances):
    return np.argsort(chances, kind="stable")[::-1]


def kept(chances, ids):
    found = np.zeros(len(chances))
    found[list(ids)] = chances[list(ids)]
    return found / found.sum()


def perplexity(chances):
    return math.exp(sum(-math.log(one) for one in chances) / len(chances))


def targets(ids, wrote):
    return [id if own else -100 for id, own in list(zip(ids, wrote, strict=True))[1:]]


def dpo_loss(chosen, rejected, base_chosen, base_rejected, beta):
    margin = beta * (chosen - rejected - base_chosen + base_rejected)
    return math.log(1 + math.exp(-margin))


def advantages(rewards):
    found = []
    for row in rewards:
        spread = np.std(row)
        found.append((row - np.mean(row)) / spread if spread > 0 else row * 0)
    return np.array(found)


def vote(answers):
    read = [answer for answer in answers if answer is not None]
    return max(read, key=read.count) if read else "no answer"


def exponent(compute, losses, seed, ends=(2.5, 97.5)):
    rng = np.random.default_rng(seed)
    x, y = np.log(compute), np.log(losses)

    def fit(x, y):
        return -np.cov(x, y)[0, 1] / np.var(x, ddof=1)

    found = []
    for _ in range(1000):
        rows = rng.choice(len(x), len(x))
        found.append(fit(x[rows], y[rows]))
    return fit(x, y), *np.percentile(found, ends)


SOLUTIONS = {
    "1.1": chances,
    "1.2": top_p,
    "1.3": perplexity,
    "1.4": targets,
    "1.5": dpo_loss,
    "1.6": advantages,
    "1.7": vote,
    "1.8": exponent,
}
WRONG = {
    "1.1": [
        (lambda x, t: np.exp(x / t) / np.exp(x / t).sum(), "NaN"),
        (lambda x, t: chances(x, 1 / t), "divides by it"),
        (lambda x, t: chances(x, 1.0) ** t, "sum to 1"),
        (lambda x, t: chances(x, t).max(), "shape"),
        (lambda x, t: np.exp((x - x.mean()) / t) / np.exp((x - x.mean()) / t).sum(), "NaN"),
        (lambda x, t: chances(x, 1.0), "missing or comes too late"),
        (lambda x, t: np.log(chances(x, t)), "logarithms"),
    ],
    "1.2": [
        (lambda c, m: top_p(c, m) * m, "sum to 1"),
        (lambda c, m: np.where(c >= m * c.max(), c, 0) / c[c >= m * c.max()].sum(), "min-p"),
        (lambda c, m: np.nonzero(top_p(c, m))[0], "shape"),
        (lambda c, m: np.full(len(c), 1 / len(c)), "differs"),
        (lambda c, m: kept(c, [n for n in range(len(c)) if c[n] >= m]), "not on each chance"),
        (lambda c, m: kept(c, likeliest(c)[: (np.cumsum(np.sort(c)[::-1]) <= m).sum()]), "one too few"),
        (lambda c, m: kept(c, likeliest(c)[: (np.cumsum(np.sort(c)[::-1]) <= m).sum() + 1]), "one too many"),
        (lambda c, m: top_p(np.sort(c)[::-1], m), "token's place"),
        (lambda c, m: kept(c, range((np.cumsum(c) < m).sum() + 1)), "first ones"),
    ],
    "1.3": [
        (lambda c: -np.log(c).mean(), "e^loss"),
        (lambda c: 1 / np.mean(c), "of their logarithms"),
        (lambda c: 2 ** (-np.log(c).mean()), "the loss is in ln: the perplexity"),
        (lambda c: np.exp(np.log(c).mean()), "upside down"),
        (lambda c: np.prod(c) ** (1 / len(c)), "1 or more"),
        (lambda c: np.prod(c) ** (-1 / len(c)), "add logarithms"),
        (lambda c: math.exp(-sum(math.log2(one) for one in c) / len(c)), "another base"),
    ],
    "1.4": [
        (lambda i, w: [a if b else -100 for a, b in zip(i, w, strict=True)], "shifted by one"),
        (lambda i, w: i[1:], "user's tokens are learned too"),
        (lambda i, w: [a if b else -100 for a, b in zip(i[1:], w, strict=False)], "not whose is read"),
        (lambda i, w: [a for a, b in zip(i[1:], w[1:], strict=True) if b], "every place"),
        (lambda i, w: [a if b else 0 for a, b in zip(i[1:], w[1:], strict=True)], "-100, not 0"),
        (
            lambda i, w: [a if b else -100 for a, b in zip(i[:-1], w[1:], strict=True)],
            "the target is the next",
        ),
    ],
    "1.5": [
        (lambda c, r, bc, br, b: math.log(1 + math.exp(-b * (c - r))), "base is missing"),
        (lambda c, r, bc, br, b: dpo_loss(r, c, br, bc, b), "exchanged"),
        (lambda c, r, bc, br, b: math.exp(-dpo_loss(c, r, bc, br, b)), "negative logarithm"),
        (lambda c, r, bc, br, b: -dpo_loss(c, r, bc, br, b), "above 0"),
        (lambda c, r, bc, br, b: dpo_loss(c, -r, bc, -br, b), "taken off, not added"),
        (lambda c, r, bc, br, b: dpo_loss(c, 0, bc, 0, b), "differs"),
    ],
    "1.6": [
        (lambda r: (r - r.mean(1, keepdims=True)) / r.std(1, keepdims=True), "NaN"),
        (lambda r: r - r.mean(1, keepdims=True), "not divided"),
        (lambda r: (r - r.mean()) / r.std(), "each prompt alone"),
        (lambda r: advantages(r) + 1, "sum to 0"),
        (lambda r: np.array([(x - x.mean()) / (np.std(x, ddof=1) or 1) for x in r]), "over n - 1"),
        (lambda r: np.array([(x - x.mean()) / (np.var(x) or 1) for x in r]), "that is the variance"),
    ],
    "1.7": [
        (lambda a: max(a, key=a.count), "does not vote"),
        (lambda a: next((x for x in a if x is not None), "no answer"), "first answer"),
        (lambda a: sorted(x for x in a if x)[0] if any(a) else "no answer", "differs"),
        (lambda a: a.count(vote(a)), "type str"),
        (lambda a: max(a, key=a.count) or "no answer", "does not vote"),
        (lambda a: None if not any(a) else vote(a), 'the text "no answer"'),
        (lambda a: vote(a[::-1]), "first counts"),
    ],
    "1.8": [
        (lambda c, x, s: tuple(-one for one in exponent(c, x, s)), "sign"),
        (lambda c, x, s: (exponent(c, x, s)[0],) * 3, "too narrow"),
        (lambda c, x, s: (exponent(c, x, s)[0], 0.0, 9.0), "too wide"),
        (lambda c, x, s: exponent(c, x, s, (5, 95)), "too narrow"),
        (lambda c, x, s: exponent(c, x, s, (0, 100)), "too wide"),
        (
            lambda c, x, s: (exponent(c, x, s, (50, 50))[1], *exponent(c, x, s)[1:]),
            "through all runs as they are",
        ),
        (lambda c, x, s: exponent(c, x, s)[0], "three numbers"),
        (lambda c, x, s: (0.5, 0.4, 0.6), "straight line"),
        (lambda c, x, s: (exponent(c, x, s)[0], *exponent(c, x, s)[:0:-1]), "exchanged"),
    ],
}
