"""Chapter 3: solutions, and wrong answers with words of the hint that each must get."""

import math

import numpy as np


def vocabulary(words, size):
    counts = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    ordered = sorted(sorted(counts), key=counts.get, reverse=True)
    return ["<unk>", *ordered[: size - 1]]


def unknown_rate(vocabulary, words):
    return len([word for word in words if word not in vocabulary]) / len(words)


def zipf_exponent(words):
    counts = sorted((words.count(word) for word in set(words)), reverse=True)
    x, y = np.log(range(1, len(counts) + 1)), np.log(counts)
    return -np.sum((x - x.mean()) * (y - y.mean())) / np.sum((x - x.mean()) ** 2)


def wordpiece(word, vocabulary):
    pieces, rest = [], word
    while rest:
        mark = "##" if pieces else ""
        for end in range(len(rest), 0, -1):
            if mark + rest[:end] in vocabulary:
                pieces.append(mark + rest[:end])
                rest = rest[end:]
                break
        else:
            return ["<unk>"]
    return pieces


def best_cut(word, scores):
    best = [(0.0, [])]
    for end in range(1, len(word) + 1):
        ways = [
            (best[begin][0] + scores[word[begin:end]], [*best[begin][1], word[begin:end]])
            for begin in range(end)
            if word[begin:end] in scores
        ]
        best.append(max(ways, key=lambda way: way[0]))
    return best[-1][1]


def log_probability(word, scores):
    sums = [1.0]
    for end in range(1, len(word) + 1):
        sums.append(sum(sums[b] * math.exp(scores[word[b:end]]) for b in range(end) if word[b:end] in scores))
    return math.log(sums[-1])


SOLUTIONS = {
    "3.1": vocabulary,
    "3.2": unknown_rate,
    "3.3": zipf_exponent,
    "3.4": wordpiece,
    "3.5": best_cut,
    "3.6": log_probability,
}
WRONG = {
    "3.1": [
        (lambda w, n: vocabulary(w, n)[1:], "first entry"),
        (lambda w, n: vocabulary(w, n + 1), "one too long"),
        (lambda w, n: ["<unk>", *sorted(set(w))][:n], "most frequent come first"),
        (lambda w, n: ["<unk>", *w][:n], "a word should be there once"),
    ],
    "3.2": [
        (lambda v, w: len(set(w) - set(v)) / len(set(w)), "as often as it occurs"),
        (lambda v, w: 1 - unknown_rate(v, w), "that is known"),
        (lambda v, w: unknown_rate(v, w) * len(w), "a share is asked for"),
        (lambda v, w: 100 * unknown_rate(v, w), "between 0 and 1"),
    ],
    "3.3": [
        (lambda w: -zipf_exponent(w), "line falls"),
        (lambda w: zipf_exponent(w) * math.log(2), "differs"),
        (lambda w: np.array([zipf_exponent(w)]), "one number"),
        (lambda w: len(set(w)) / len(w), "differs"),
    ],
    "3.4": [
        (lambda w, v: [p.replace("##", "") for p in wordpiece(w, v)], "marks are missing"),
        (lambda w, v: [w[0]] + ["##" + c for c in w[1:]], "single letters"),
        (lambda w, v: [w] if w in v else ["<unk>"], "a word that can be cut is <unk>"),
        (lambda w, v: wordpiece(w + "x", v), "a word that can be cut is <unk>"),
    ],
    "3.5": [
        (lambda w, s: list(w), "single letters"),
        (lambda w, s: best_cut(w, dict.fromkeys(s, -1.0)), "fewest pieces"),
        (lambda w, s: best_cut(w[:-1], s), "spell the word"),
        (lambda w, s: [w], "not in the vocabulary"),
    ],
    "3.6": [
        (lambda w, s: sum(s[p] for p in best_cut(w, s)), "best cut's: all cuts"),
        (lambda w, s: math.exp(log_probability(w, s)), "logarithm is asked for"),
        (lambda w, s: sum(s[c] for c in w), "below the best"),
        (lambda w, s: log_probability(w, s) / len(w), "differs"),
    ],
}
