"""More faults that newcomers make in chapter 4: by exercise, each hint with the function that has it.

A function gets the library's own as its first argument, ``right``.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

from cutaway.course.chapter_4 import Pair, merged, merged_as_text, merged_once
from cutaway.course.mistakes_text import Faults

Words = dict[tuple[str, ...], int]


def _pairs(starts: Callable[[tuple[str, ...]], Iterable[int]]) -> Callable[..., dict[Pair, int]]:
    """The counts of the pairs that begin at some places of each word."""

    def wrong(right: Any, words: Words) -> dict[Pair, int]:
        counts = Counter[Any]()
        for word, times in words.items():
            for at in starts(word):
                counts[word[at : at + 2]] += times
        return dict(counts)

    return wrong


def _apart(word: tuple[str, ...]) -> Iterable[int]:
    """The places of pairs of which no two equal ones overlap."""
    at = 0
    while at < len(word) - 1:
        yield at
        at += 2 if word[at] == word[at + 1] else 1


def _right_one_stays(right: Any, symbols: list[str], pair: Pair) -> list[str]:
    starts = [both == pair for both in itertools.pairwise(symbols)]
    return ["".join(pair) if joined else one for one, joined in zip(symbols, [*starts, False], strict=True)]


def _joined_again(right: Any, symbols: list[str], pair: Pair) -> list[str]:
    made: list[str] = []
    for one in symbols:
        if made and made[-1].endswith(pair[0]) and one == pair[1]:
            made[-1] += one
        else:
            made.append(one)
    return made


def _until_once(right: Any, words: dict[str, int], merges: int) -> list[Pair]:
    counts = []

    def best(own: dict[Pair, int]) -> Pair:
        counts.append(max(own.values()))
        return min(own, key=lambda pair: (-own[pair], pair))

    return [pair for pair, count in zip(right(words, merges, best), counts, strict=True) if count > 1]


def _latest_first(right: Any, word: str, merges: list[Pair]) -> list[str]:
    symbols = list(word)
    while known := [merges.index(pair) for pair in itertools.pairwise(symbols) if pair in merges]:
        symbols = merged(symbols, merges[max(known)])
    return symbols


def _most_frequent_first(right: Any, word: str, merges: list[Pair]) -> list[str]:
    symbols = list(word)
    while known := Counter(pair for pair in itertools.pairwise(symbols) if pair in merges):
        symbols = merged(symbols, known.most_common(1)[0][0])
    return symbols


def _bytes(text: str) -> int:
    return len(text.encode())


MERGES: Faults = {
    "4.1": {
        "a count begins at 0": lambda right, words: {pair: n + 1 for pair, n in right(words).items()},
        "the last pair of each word is left out": _pairs(lambda word: range(len(word) - 2)),
        "the first pair of each word is left out": _pairs(lambda word: range(1, len(word) - 1)),
        "it goes in steps of two: a symbol is in the pair on its left and in that on its right": _pairs(
            lambda word: range(0, len(word) - 1, 2)
        ),
        "two equal symbols side by side are a pair too": _pairs(
            lambda word: [at for at in range(len(word) - 1) if word[at] != word[at + 1]]
        ),
        "three equal symbols are two pairs: pairs may overlap": _pairs(_apart),
        "pairs that do not occur are in the dictionary": lambda right, words: (
            dict.fromkeys(itertools.product({one for word in words for one in word}, repeat=2), 0)
            | right(words)
        ),
    },
    "4.2": {
        "the right symbol of a joined pair is still there: go on behind it": _right_one_stays,
        "the last symbol is there twice where a pair ends there": lambda right, s, p: (
            made if (made := right(s, p))[-1] == s[-1] else [*made, s[-1]]
        ),
        "a symbol that was joined is joined again": _joined_again,
    },
    "4.3": {
        "there is one merge too few": lambda right, w, m: right(w, m - 1),
        "pairs that occur once are merged too": _until_once,
        "it joins a part of a symbol: `s`, `t` is not in `es`, `t`": lambda right, w, m: right(
            w, m, None, merged_as_text
        ),
        "only the first occurrence in a word is merged": lambda right, w, m: right(w, m, None, merged_once),
        "of equally frequent pairs the smallest tuple is asked for, not the smallest text": (
            lambda right, w, m: right(w, m, lambda own: min(own, key=lambda one: (-own[one], "".join(one))))
        ),
        "it takes the smallest pair: the most frequent one is asked for, and the smallest of equals": (
            lambda right, w, m: right(w, m, min)
        ),
    },
    "4.4": {
        "it takes the pair that was learned last: the one learned first comes first": _latest_first,
        "it takes the pair that is most frequent in the word: the one learned first": _most_frequent_first,
        "the merges are made in reverse: the one learned first comes first": lambda right, w, m: reduce(
            merged, reversed(m), list(w)
        ),
        "it joins a part of a symbol: `a`, `b` is not in `a`, `bc`": lambda right, w, m: reduce(
            merged_as_text, m, list(w)
        ),
        "only the first occurrence of a pair is merged": lambda right, w, m: reduce(merged_once, m, list(w)),
        "the word is one token: only pairs that were learned are merged": lambda right, w, m: [w],
    },
    "4.5": {
        "that is how Python writes bytes: decode them": lambda right, i, t: "".join(str(t[n]) for n in i),
        "the ids are off by one: id 0 is the first token": lambda right, i, t: right([n - 1 for n in i], t),
        "the tokens are in the order of their ids: it is that of the text": lambda right, i, t: right(
            sorted(i), t
        ),
        "bytes are read as UTF-16: they are UTF-8": lambda right, i, t: b"".join(t[n] for n in i).decode(
            "utf-16", "replace"
        ),
        "bytes are read as ASCII: they are UTF-8": lambda right, i, t: b"".join(t[n] for n in i).decode(
            "ascii", "replace"
        ),
        "bytes that are no UTF-8 become U+FFFD, and not an escape": lambda right, i, t: b"".join(
            t[n] for n in i
        ).decode(errors="backslashreplace"),
        "the text is stripped: white space is text": lambda right, i, t: right(i, t).strip(),
        "each token is decoded by itself: what it cuts in two is lost": lambda right, i, t: "".join(
            t[n].decode(errors="ignore") for n in i
        ),
        "bytes that are no UTF-8 become U+FFFD, and not a question mark": lambda right, i, t: right(
            i, t
        ).replace("\ufffd", "?"),
        "an id is no byte: `tokens` has the bytes of each id": lambda right, i, t: bytes(i).decode(
            errors="replace"
        ),
    },
    "4.6": {
        "texts are encoded as one: each is encoded by itself": lambda right, t, e: (
            _bytes("".join(t)) / len(e("".join(t)))
        ),
        "texts are joined by a new line: each is encoded by itself": lambda right, t, e: right(
            ["\n".join(t)], e
        ),
        "it is a whole division": lambda right, t, e: right(t, e) // 1,
        "it is rounded": lambda right, t, e: round(right(t, e), 2),
        "it is bytes a text: bytes a token are asked for": lambda right, t, e: sum(map(_bytes, t)) / len(t),
        "each token counts as often as it occurs": lambda right, t, e: (
            sum(map(_bytes, t)) / len({token for text in t for token in e(text)})
        ),
        "only the first text is counted": lambda right, t, e: right(t[:1], e),
        "only the last text is counted": lambda right, t, e: right(t[-1:], e),
        "the ratios are added up: all bytes over all tokens is asked for": lambda right, t, e: sum(
            right([text], e) for text in t
        ),
        "it counts words: a text's bytes are asked for": lambda right, t, e: (
            right(t, e) * sum(len(text.split()) for text in t) / sum(map(_bytes, t))
        ),
        "bytes are those of UTF-16: they are of UTF-8": lambda right, t, e: (
            right(t, e) * sum(len(text.encode("utf-16-le")) for text in t) / sum(map(_bytes, t))
        ),
    },
}
