"""More faults that newcomers make in chapters 1 to 3: by exercise, each hint with the function that has it.

A function gets the library's own as its first argument, ``right``.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

Faults = dict[str, dict[str, Callable[..., Any]]]


def _of_counts(words: list[str], x: Callable[[int], Any], fit: int = 0, order: int = -1) -> float:
    """A line through ln(count) over x(number of words), counts in falling order, or rising with order 1."""
    counts = sorted(Counter(words).values())[::order]
    return float(np.polyfit(x(len(counts)), np.log(counts), 1)[fit])


def _ranks(count: int) -> np.ndarray:
    return np.log(np.arange(1, count + 1))


def _cut_by(word: str, fits: Callable[[str, int], bool], unknown: list[str], last: int = 0) -> list[str]:
    """The longest piece that fits at each place, as the marks of the piece before it are."""
    pieces: list[str] = []
    at = 0
    while at < len(word):
        for end in range(len(word) - last, at, -1):
            if fits(word[at:end], at):
                pieces.append(word[at:end])
                at = end
                break
        else:
            return unknown
    return pieces


def _marked(pieces: list[str]) -> list[str]:
    return ["##" * (n > 0 and piece != "<unk>") + piece for n, piece in enumerate(pieces)]


def _from_the_right(word: str, vocabulary: list[str]) -> list[str]:
    pieces: list[str] = []
    end = len(word)
    while end:
        found = (b for b in range(end) if "##" * (b > 0) + word[b:end] in vocabulary)
        begin = next(found, None)
        if begin is None:
            return ["<unk>"]
        pieces.insert(0, "##" * (begin > 0) + word[begin:end])
        end = begin
    return pieces


def _best_next(word: str, scores: dict[str, float]) -> list[str]:
    """The likeliest piece at each place."""
    found, at = [], 0
    while at < len(word):
        ends = (end for end in range(at + 1, len(word) + 1) if word[at:end] in scores)
        end = max(ends, key=lambda end: scores[word[at:end]])
        found.append(word[at:end])
        at = end
    return found


def _walk(
    word: str, scores: dict[str, float], join: Callable[[float, float, int], float], first: float
) -> Any:
    best: list[tuple[float, list[str]]] = [(first, [])]
    for end in range(1, len(word) + 1):
        ways = [
            (join(best[b][0], scores[word[b:end]], len(best[b][1])), [*best[b][1], word[b:end]])
            for b in range(end)
            if word[b:end] in scores
        ]
        best.append(max(ways))
    return best[-1][1]


def _summed(word: str, scores: dict[str, float], pieces: list[str]) -> float:
    return math.log(sum(math.exp(scores[piece]) for piece in pieces if piece in scores))


def _whole_tokens(tokens: list[bytes]) -> list[str]:
    """A token waits as a whole while its end is half a character."""
    found, waiting = [], b""
    for token in tokens:
        waiting += token
        try:
            found.append(waiting.decode())
            waiting = b""
        except UnicodeDecodeError:
            found.append("")
    return found


def _kept_for_ever(tokens: list[bytes]) -> list[str]:
    found, all_of_them = [], b""
    for token in tokens:
        all_of_them += token
        try:
            found.append(all_of_them.decode())
        except UnicodeDecodeError:
            found.append("")
    return found


def _regex(*pieces: str) -> Callable[..., list[str]]:
    pattern = re.compile("|".join(pieces))
    return lambda right, text: pattern.findall(text)


def _split(text: str, pattern: str, controls: list[str]) -> list[tuple[str, bool]]:
    return [(part, part in controls) for part in re.split(f"({pattern})", text) if part]


# The first characters of two, three and four bytes, written with a byte less.
FIRST = {"\x80": [0x80], "\u0800": [0xE0, 0x80], "\U00010000": [0xF0, 0x80, 0x80]}
TEXT: Faults = {
    "1.1": {
        "there is no exponential: a chance is e^(logit / temperature) over the sum": lambda right, x, t: (
            x / t / np.sum(x / t)
        ),
        "it is 2^(logit / temperature): the base is e": lambda right, x, t: right(x * math.log(2), t),
    },
    "1.3": {
        "that is the mean of 1 / chance: the mean is taken of logarithms": lambda right, c: np.mean(
            1 / np.asarray(c)
        ),
        "the loss is in ln: the perplexity is a power of e, not of 2": lambda right, c: (
            2 ** math.log(right(c))
        ),
        "the loss is in logarithms to base 10: it is in ln": lambda right, c: math.exp(math.log10(right(c))),
        "the sum is divided by n - 1: the mean is over all n tokens": lambda right, c: math.exp(
            math.log(right(c)) * len(c) / max(len(c) - 1, 1)
        ),
    },
    "1.4": {
        "there is one target too many: the last token predicts nothing that is there": lambda right, i, w: [
            *right(i, w),
            -100,
        ],
        "there is one target too few": lambda right, i, w: right(i, w)[:-1],
        "what is left out is -100, not -1": lambda right, i, w: [
            -1 if one == -100 else one for one in right(i, w)
        ],
        "what is left out is -100, not 0": lambda right, i, w: [
            0 if one == -100 else one for one in right(i, w)
        ],
        "the assistant's first token is left out: it is predicted too": lambda right, i, w: [
            one if w[n] else -100 for n, one in enumerate(right(i, w))
        ],
    },
    "1.5": {
        "what the base gave is taken off the new log-probability, not added": lambda right, c, r, bc, br, b: (
            right(c, r, -bc, -br, b)
        ),
        "the logarithm is to base 10: it is the natural one": lambda right, *g: right(*g) / math.log(10),
        "the margin is multiplied by beta, not divided": lambda right, c, r, bc, br, b: right(
            c, r, bc, br, 1 / b
        ),
        "a ratio of log-probabilities is taken: logarithms are subtracted": lambda right, c, r, bc, br, b: (
            right(c / bc, r / br, 0, 0, b)
        ),
    },
    "1.6": {
        "something is added to the deviation: it is divided by the deviation alone": lambda right, r: (
            (r - r.mean(1, keepdims=True)) / (r.std(1, keepdims=True) + 1e-4)
        ),
        "they are divided by the largest: it is the standard deviation": lambda right, r: (
            (r - r.mean(1, keepdims=True))
            / np.maximum(np.abs(r - r.mean(1, keepdims=True)).max(1, keepdims=True), 1e-9)
        ),
    },
    "1.7": {
        "it asks for more than half of the answers: the most frequent is enough": lambda right, a: next(
            (one for one in a if one is not None and 2 * a.count(one) > len(a)), "no answer"
        ),
        "it takes the rarest answer": lambda right, a: min(
            [one for one in a if one is not None] or ["no answer"], key=a.count
        ),
        "an empty text is an answer: only None could not be read": lambda right, a: right(
            [one or None for one in a]
        ),
    },
    "2.1": {
        "a space before a piece belongs to it": _regex(r"[a-zA-Z]+", r"[0-9]", r"[^\sa-zA-Z0-9]+", r"\s+"),
        "white space that is left is one piece, all that follows one another together": _regex(
            r" ?[a-zA-Z]+", r" ?[0-9]", r" ?[^\sa-zA-Z0-9]+", r"\s"
        ),
        "one space belongs to a piece, and no more": _regex(
            r" *[a-zA-Z]+", r" *[0-9]", r" *[^\sa-zA-Z0-9]+", r"\s+"
        ),
        "white space is tried before signs: one space belongs to them": _regex(
            r" ?[a-zA-Z]+", r" ?[0-9]", r"\s+", r" ?[^\sa-zA-Z0-9]+"
        ),
        "A to Z are letters too": _regex(r" ?[a-z]+", r" ?[0-9]", r" ?[^\sa-z0-9]+", r"\s+"),
        "letters are a to z and A to Z alone: é is a sign here": _regex(
            r" ?[^\W\d_]+", r" ?\d", r" ?(?:[^\s\w]|_)+", r"\s+"
        ),
    },
    "2.2": {
        "that is UTF-32: it has four bytes for a letter": lambda right, t: list(t.encode("utf-32-le")),
        "the list begins with a byte order mark, which is no part of the text": lambda right, t: [
            0xEF,
            0xBB,
            0xBF,
            *right(t),
        ],
        "characters beyond 65,535 have four bytes": lambda right, t: [
            byte
            for c in t
            for byte in (
                right(c)
                if ord(c) < 0x10000
                else [0xE0 | (ord(c) >> 12) & 15, 0x80 | ord(c) >> 6 & 63, 0x80 | ord(c) & 63]
            )
        ],
        "a character's bytes are in reversed order: the first one has the highest bits": lambda right, t: [
            byte for c in t for byte in right(c)[::-1]
        ],
        "128, 2,048 and 65,536 need one byte more than the numbers below them": lambda right, t: [
            byte for c in t for byte in (FIRST[c] if c in FIRST else right(c))
        ],
    },
    "2.3": {
        "a control's `|` is a sign of regular expressions: it must be read as text": lambda right, t, c: (
            _split(t, "|".join(sorted(c, key=len, reverse=True)), c)
        ),
        "the marks are the wrong way round: True is a control token": lambda right, t, c: [
            (part, not own) for part, own in right(t, c)
        ],
        "what is between two control tokens is one part": lambda right, t, c: [
            one
            for part, own in right(t, c)
            for one in ([(part, True)] if own else [(sign, False) for sign in part])
        ],
        "control tokens behind the first one are not found": lambda right, t, c: (
            right(t, c)[: 1 + [own for _, own in right(t, c)].index(True)]
            + [
                one
                for one in [
                    (
                        "".join(
                            part for part, _ in right(t, c)[1 + [own for _, own in right(t, c)].index(True) :]
                        ),
                        False,
                    )
                ]
                if one[0]
            ]
            if any(own for _, own in right(t, c))
            else right(t, c)
        ),
    },
    "2.4": {
        "complete characters wait too: show them at once, and keep the half one alone": lambda right, t: (
            _whole_tokens(t)
        ),
        "what was shown is shown again: forget it": lambda right, t: _kept_for_ever(t),
    },
    "2.5": {
        "the two arrays are exchanged: ids come first": lambda right, r, p: right(r, p)[::-1],
        "tokens and texts are exchanged: a row is a text": lambda right, r, p: tuple(
            one.T for one in right(r, p)
        ),
        "the mask is of texts that end at the right: the padding follows the text": lambda right, r, p: (
            right(r, p)[0],
            right(r, p)[1][:, ::-1],
        ),
    },
    "2.6": {
        "those are means of tokens: they are relative to English": lambda right, c: {
            name: np.mean(own) for name, own in c.items()
        },
        "those are percentages: how many times as many is asked for": lambda right, c: {
            name: 100 * own for name, own in right(c).items()
        },
        "that is how many times more: English has 1, not 0": lambda right, c: {
            name: own - 1 for name, own in right(c).items()
        },
        "it is a whole division: 1.5 times as many is an answer": lambda right, c: {
            name: math.floor(own) for name, own in right(c).items()
        },
        "they are rounded to whole numbers": lambda right, c: {
            name: round(own) for name, own in right(c).items()
        },
        "only the first sentence is counted": lambda right, c: right({n: own[:1] for n, own in c.items()}),
        "medians are compared: all tokens over all tokens is asked for": lambda right, c: {
            name: float(np.median(own) / np.median(c["eng"])) for name, own in c.items()
        },
        "it is relative to the cheapest language: English has 1": lambda right, c: {
            name: own / min(right(c).values()) for name, own in right(c).items()
        },
    },
    "3.1": {
        "equally frequent words are in the reversed order of the alphabet": lambda right, w, n: [
            "<unk>",
            *sorted(set(w), key=lambda one: (w.count(one), one), reverse=True)[: n - 1],
        ],
        "an entry is a word alone, without its count": lambda right, w, n: [
            "<unk>",
            *((one, w.count(one)) for one in right(w, n)[1:]),
        ],
        "the words were made small: `The` and `the` are two words": lambda right, w, n: right(
            [one.lower() for one in w], n
        ),
        "it is filled up: where there are fewer words the list is shorter": lambda right, w, n: [
            *right(w, n),
            *["<unk>"] * (n - len(right(w, n))),
        ],
    },
    "3.2": {
        "it is a whole division: a share is between 0 and 1": lambda right, v, w: math.floor(right(v, w)),
        "unknown words are counted once, and all words as often as they occur": lambda right, v, w: (
            len(set(w) - set(v)) / len(w)
        ),
        "it counts letters: each word counts once a time": lambda right, v, w: (
            sum(len(one) for one in w if one not in v) / sum(map(len, w))
        ),
        "a part of an entry is no entry: compare whole words": lambda right, v, w: (
            sum(one not in " ".join(v) for one in w) / len(w)
        ),
    },
    "3.3": {
        "the counts rise: the largest comes first": lambda right, w: -_of_counts(w, _ranks, order=1),
        "the axes are exchanged: counts over ranks": lambda right, w: (
            -float(np.polyfit(np.log(sorted(Counter(w).values())[::-1]), _ranks(len(set(w))), 1)[0])
        ),
        "that is where the line begins: its steepness is asked for": lambda right, w: _of_counts(
            w, _ranks, 1
        ),
        "the counts are in the order in which words came: sort them": lambda right, w: (
            -float(np.polyfit(_ranks(len(set(w))), np.log(list(Counter(w).values())), 1)[0])
        ),
        "the two logarithms have different bases": lambda right, w: right(w) * math.log(10),
        "the line goes through the first and the last word alone: fit it to all": lambda right, w: (
            math.log(max(Counter(w).values()) / min(Counter(w).values())) / math.log(len(set(w)))
        ),
    },
    "3.4": {
        "pieces within a word are looked up without ##": lambda right, w, v: _cut_by(
            w, lambda piece, at: piece in v, ["<unk>"]
        ),
        "a word that can be cut is <unk>: is its last letter ever part of a piece?": lambda right, w, v: (
            _marked(_cut_by(w, lambda piece, at: "##" * (at > 0) + piece in v, ["<unk>"], last=1))
        ),
        "the first piece has no ##": lambda right, w, v: [
            f"##{piece}" if piece != "<unk>" else piece
            for piece in _cut_by(w, lambda piece, at: f"##{piece}" in v, ["<unk>"])
        ],
        "it cuts from the right: the longest piece that begins the word comes first": lambda right, w, v: (
            _from_the_right(w, v)
        ),
        'a word that no pieces fit is ["<unk>"], not an empty list': lambda right, w, v: [
            piece for piece in right(w, v) if piece != "<unk>"
        ],
    },
    "3.5": {
        "it takes the likeliest piece each time: two others together may be likelier": lambda right, w, s: (
            _best_next(w, s)
        ),
        "scores are multiplied: logarithms of probabilities add up": lambda right, w, s: _walk(
            w, s, lambda a, b, n: a * b, 1.0
        ),
        "it takes the mean score of the pieces: the sum is asked for": lambda right, w, s: _walk(
            w, s, lambda a, b, n: (a * n + b) / (n + 1), 0.0
        ),
    },
    "3.6": {
        "the sign is wrong: a logarithm of a probability is below 0": lambda right, w, s: -right(w, s),
        "the empty beginning has probability 1, and 1 has the logarithm 0": lambda right, w, s: (
            right(w, s) + 1
        ),
        "the last pieces alone are added up, without the ways that lead to them": lambda right, w, s: _summed(
            w, s, [w[at:] for at in range(len(w))]
        ),
        "pieces are added up: a cut is a product of pieces, and cuts add up": lambda right, w, s: _summed(
            w, s, [w[a:b] for a, b in itertools.combinations(range(len(w) + 1), 2)]
        ),
    },
}
