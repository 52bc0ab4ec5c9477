"""Chapter 4: solutions, and wrong answers with words of the hint that each must get."""

import itertools
import re
from collections import Counter


def pair_counts(words):
    counts = Counter()
    for word, times in words.items():
        for left, right in itertools.pairwise(word):
            counts[left, right] += times
    return dict(counts)


def merge(symbols, pair):
    made = []
    for symbol in symbols:
        if made and made[-1] == pair[0] and symbol == pair[1] and not taken:
            made[-1] = pair[0] + pair[1]
            taken = True
        else:
            made.append(symbol)
            taken = False
    return made


def learn(words, merges):
    corpus, found = [[list(word), times] for word, times in words.items()], []
    while len(found) < merges:
        counts = Counter()
        for symbols, times in corpus:
            for pair in itertools.pairwise(symbols):
                counts[pair] += times
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        found.append(best)
        for entry in corpus:
            entry[0] = merge(entry[0], best)
    return found


def encode(word, merges):
    symbols = list(word)
    for pair in merges:  # equal where every merge's parts were learned before it, and looked at again below
        symbols = merge(symbols, pair)
    again = [pair for pair in merges if pair in list(itertools.pairwise(symbols))]
    return symbols if not again else _slowly(word, merges)


def _slowly(word, merges):
    symbols = list(word)
    while True:
        found = [merges.index(p) for p in itertools.pairwise(symbols) if p in merges]
        if not found:
            return symbols
        symbols = merge(symbols, merges[min(found)])


def decode(ids, tokens):
    whole = bytearray()
    for id in ids:
        whole += tokens[id]
    return whole.decode("utf-8", "replace")


def bytes_per_token(texts, encode):
    size = tokens = 0
    for text in texts:
        size, tokens = size + len(text.encode("utf-8")), tokens + len(encode(text))
    return size / tokens


def _first_alone(symbols, pair):
    for at, both in enumerate(itertools.pairwise(symbols)):
        if both == pair:
            return [*symbols[:at], "".join(pair), *symbols[at + 2 :]]
    return symbols


def _in_place(symbols, pair):
    at = 0
    while at < len(symbols) - 1:
        if (symbols[at], symbols[at + 1]) == pair:
            symbols[at : at + 2] = ["".join(pair)]
        at += 1
    return symbols


SOLUTIONS = {
    "4.1": pair_counts,
    "4.2": merge,
    "4.3": learn,
    "4.4": _slowly,
    "4.5": decode,
    "4.6": bytes_per_token,
}
WRONG = {
    "4.1": [
        (
            lambda words: dict(Counter(p for w in words for p in itertools.pairwise(w))),
            "own count is left out",
        ),
        (lambda words: pair_counts({w[:-1]: n for w, n in words.items()}), "missing"),
        (lambda words: {(b, a): n for (a, b), n in pair_counts(words).items()}, "in the order of the text"),
        (lambda words: pair_counts({sum((w * n for w, n in words.items()), ()): 1}), "cross the border"),
        (lambda words: {p: n for w, n in words.items() for p in itertools.pairwise(w)}, "add them up"),
        (lambda words: {"".join(p): n for p, n in pair_counts(words).items()}, "should be a pair"),
        (lambda words: print(pair_counts(words)), "returned None"),
    ],
    "4.2": [
        (lambda s, p: "|".join(s).replace("|".join(p), "".join(p), 1).split("|"), "pair is left"),
        (_first_alone, "only the first"),
        (lambda s, p: re.sub(re.escape("".join(p)), "".join(p), "".join(s)), "list"),
        (lambda s, p: [one for one in merge(s, p) if one != p[0]], "letters changed"),
        (lambda s, p: merge(s, p[::-1]), "an occurrence of the pair is left"),
        (lambda s, p: s.pop() and merge(s, p), "changed one of its arguments"),
        (_in_place, "changed one of its arguments"),
        (lambda s, p: "|".join(s).replace("|".join(p), "".join(p)).split("|"), "a part of a symbol"),
        (lambda s, p: merge([*s, "?"], p)[:-1] if s[-1] == p[1] else merge(s, p)[:-1], "last symbol is lost"),
    ],
    "4.3": [
        (lambda w, m: learn(dict.fromkeys(w, 1), m), "counts are left out"),
        (lambda w, m: learn(dict.fromkeys(sorted(w), 2), m)[::-1], "differs"),
        (lambda w, m: learn(w, m + 1), "more merges"),
        (lambda w, m: learn({"".join(w): 1}, m), "crosses two words"),
        (lambda w, m: sorted(pair_counts({tuple(k): v for k, v in w.items()}).items())[:m], "two strings"),
    ],
    "4.4": [
        (lambda word, merges: list(word), "could still be merged"),
        (lambda word, merges: _slowly(word, merges[::-1]), "it takes the pair that was"),
        (lambda word, merges: _slowly(word[:-1], merges), "must spell the word"),
        (lambda word, merges: ["".join(_slowly(word, merges))], "the word is one token: only pairs"),
    ],
    "4.5": [
        (lambda ids, t: "".join(t[i].decode("utf-8", "replace") for i in ids), "by itself"),
        (lambda ids, t: b"".join(t[i] for i in ids), "type str"),
        (lambda ids, t: b"".join(t[i] for i in ids).decode(), "UnicodeDecodeError"),
        (lambda ids, t: b"".join(t[i] for i in ids).decode("latin-1"), "Latin-1"),
        (lambda ids, t: b"".join(t[i] for i in ids).decode(errors="ignore"), "dropped"),
    ],
    "4.6": [
        (lambda texts, e: sum(len(t) for t in texts) / sum(len(e(t)) for t in texts), "characters"),
        (lambda texts, e: sum(len(t.encode()) / len(e(t)) for t in texts) / len(texts), "mean of each"),
        (lambda texts, e: sum(len(e(t)) for t in texts) / sum(len(t.encode()) for t in texts), "upside down"),
        (lambda texts, e: [len(t.encode()) / len(e(t)) for t in texts], "one number"),
    ],
}
