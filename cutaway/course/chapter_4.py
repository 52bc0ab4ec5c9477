"""Chapter 4, byte pair encoding: count pairs, merge one, learn merges, encode with them, and read back."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from cutaway.course.exercise import Arguments, Exercise, Mistake, Property

TITLE = "Byte pair encoding"
QUESTION = "How does a program find the pieces of a language, when it is not given a list of words?"
Pair = tuple[str, str]


def _words(rng: np.random.Generator, count: int) -> dict[tuple[str, ...], int]:
    """Words of few letters, so that pairs repeat, each with a count above 1."""
    made = {}
    for _ in range(count):
        letters = rng.choice(list("abc"), size=int(rng.integers(1, 7)))
        made[tuple(map(str, letters))] = int(rng.integers(1, 9))
    return made


# ---- 4.1 ---------------------------------------------------------------------------------------------------


def pair_counts(words: dict[tuple[str, ...], int]) -> dict[Pair, int]:
    counts: dict[Pair, int] = {}
    for symbols, times in words.items():
        for pair in itertools.pairwise(symbols):
            counts[pair] = counts.get(pair, 0) + times
    return counts


def _counted_once(words: dict[tuple[str, ...], int]) -> dict[Pair, int]:
    return pair_counts(dict.fromkeys(words, 1))


def _counted_in_words(words: dict[tuple[str, ...], int]) -> dict[Pair, int]:
    counts: dict[Pair, int] = {}
    for symbols, times in words.items():
        for pair in set(itertools.pairwise(symbols)):
            counts[pair] = counts.get(pair, 0) + times
    return counts


def _across_words(words: dict[tuple[str, ...], int]) -> dict[Pair, int]:
    text = tuple(symbol for symbols, times in words.items() for _ in range(times) for symbol in symbols)
    return pair_counts({text: 1})


def _counted_last(words: dict[tuple[str, ...], int]) -> dict[Pair, int]:
    return {pair: times for symbols, times in words.items() for pair in itertools.pairwise(symbols)}


def _counted_apart(words: dict[tuple[str, ...], int]) -> dict[Pair, int]:
    counts: dict[Pair, int] = {}
    for symbols, times in words.items():
        for pair in itertools.combinations(symbols, 2):
            counts[pair] = counts.get(pair, 0) + times
    return counts


def _count_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield ({("l", "o", "w"): 5, ("l", "o", "t"): 2},)
    yield ({("a",): 3, ("a", "a", "a"): 1},)
    for count in (3, 8, 30):
        yield (_words(rng, count),)


# ---- 4.2 ---------------------------------------------------------------------------------------------------


def merged(symbols: list[str], pair: Pair) -> list[str]:
    made: list[str] = []
    at = 0
    while at < len(symbols):
        if tuple(symbols[at : at + 2]) == pair:
            made.append(symbols[at] + symbols[at + 1])
            at += 2
        else:
            made.append(symbols[at])
            at += 1
    return made


def merged_once(symbols: list[str], pair: Pair) -> list[str]:
    for at in range(len(symbols) - 1):
        if tuple(symbols[at : at + 2]) == pair:
            return [*symbols[:at], symbols[at] + symbols[at + 1], *symbols[at + 2 :]]
    return symbols


def _merged_from_the_right(symbols: list[str], pair: Pair) -> list[str]:
    backwards = merged(symbols[::-1], (pair[1], pair[0]))
    joined = pair[1] + pair[0]
    return [pair[0] + pair[1] if one == joined and one not in symbols else one for one in backwards[::-1]]


def merged_as_text(symbols: list[str], pair: Pair) -> list[str]:
    return "|".join(symbols).replace("|".join(pair), "".join(pair)).split("|")


def _merged_without_the_last(symbols: list[str], pair: Pair) -> list[str]:
    made = merged(symbols, pair)
    return made[:-1] if made[-1] == symbols[-1] else made


def _merge_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield list("banana"), ("a", "n")
    yield list("aaaaa"), ("a", "a")
    yield list("abc"), ("x", "y")
    yield ["ab", "c", "ab", "c", "d"], ("ab", "c")
    yield list("anan"), ("a", "n")
    yield ["ba", "n", "a", "n"], ("a", "n")  # the end of one symbol is not the symbol
    for size in (2, 9, 40):
        yield [str(one) for one in rng.choice(list("ab"), size=size)], ("b", "a")


# ---- 4.3 ---------------------------------------------------------------------------------------------------


def learned(words: dict[str, int], merges: int, best: Any = None, merge: Any = merged) -> list[Pair]:
    spelt = {tuple(word): times for word, times in words.items()}
    found: list[Pair] = []
    for _ in range(merges):
        counts = pair_counts(spelt)
        if not counts:
            break
        pair = (best or (lambda own: min(own, key=lambda one: (-own[one], one))))(counts)
        found.append(pair)
        renewed: dict[tuple[str, ...], int] = {}
        for symbols, times in spelt.items():
            own = tuple(merge(list(symbols), pair))
            renewed[own] = renewed.get(own, 0) + times
        spelt = renewed
    return found


def _learned_without_merging(words: dict[str, int], merges: int) -> list[Pair]:
    counts = pair_counts({tuple(word): times for word, times in words.items()})
    return sorted(counts, key=lambda one: (-counts[one], one))[:merges]


def _learned_rarest(words: dict[str, int], merges: int) -> list[Pair]:
    return learned(words, merges, lambda own: min(own, key=lambda one: (own[one], one)))


def _learned_last_of_equals(words: dict[str, int], merges: int) -> list[Pair]:
    return learned(words, merges, lambda own: max(own, key=lambda one: (own[one], one)))


def _learned_first_of_equals(words: dict[str, int], merges: int) -> list[Pair]:
    return learned(words, merges, lambda own: max(own, key=own.__getitem__))


def _learned_without_counts(words: dict[str, int], merges: int) -> list[Pair]:
    return learned(dict.fromkeys(words, 1), merges)


def _learn_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield {"low": 5, "lower": 2, "newest": 6, "widest": 3}, 6
    yield {"aa": 1}, 5
    for count, merges in ((4, 3), (10, 8), (30, 20)):
        yield {"".join(word): times for word, times in _words(rng, count).items()}, merges


# ---- 4.4 ---------------------------------------------------------------------------------------------------


def _encoded(word: str, merges: list[Pair]) -> list[str]:
    rank = {pair: n for n, pair in enumerate(merges)}
    symbols = list(word)
    while True:
        pairs = [pair for pair in itertools.pairwise(symbols) if pair in rank]
        if not pairs:
            return symbols
        symbols = merged(symbols, min(pairs, key=lambda pair: rank[pair]))


def _encoded_by_longest(word: str, merges: list[Pair]) -> list[str]:
    known = {a + b for a, b in merges} | set(word)
    pieces, at = [], 0
    while at < len(word):
        end = next(end for end in range(len(word), at, -1) if word[at:end] in known)
        pieces.append(word[at:end])
        at = end
    return pieces


def _encoded_leftmost(word: str, merges: list[Pair]) -> list[str]:
    symbols = list(word)
    while True:
        pair = next((pair for pair in itertools.pairwise(symbols) if pair in merges), None)
        if pair is None:
            return symbols
        symbols = merged(symbols, pair)


def _encoded_in_one_round(word: str, merges: list[Pair]) -> list[str]:
    symbols = list(word)
    for pair in merges[:1]:
        symbols = merged(symbols, pair)
    return symbols


def _encode_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield "lower", [("l", "o"), ("lo", "w"), ("e", "r")]
    yield "abc", [("b", "c"), ("a", "b")]  # the rank decides, and not which is leftmost
    yield "xyz", [("a", "b")]
    yield "aab", [("a", "b"), ("a", "ab"), ("a", "a")]
    yield "abczab", [("b", "c"), ("a", "b"), ("z", "a")]  # neither the last, nor the most frequent
    for _ in range(6):
        merges = learned({"".join(word): times for word, times in _words(rng, 12).items()}, 6)
        yield "".join(map(str, rng.choice(list("abc"), size=12))), merges


# ---- 4.5 ---------------------------------------------------------------------------------------------------


def _decoded(ids: list[int], tokens: list[bytes]) -> str:
    return b"".join(tokens[id] for id in ids).decode("utf-8", errors="replace")


def _decoded_piece_by_piece(ids: list[int], tokens: list[bytes]) -> str:
    return "".join(tokens[id].decode("utf-8", errors="replace") for id in ids)


def _decoded_ignoring(ids: list[int], tokens: list[bytes]) -> str:
    return b"".join(tokens[id] for id in ids).decode("utf-8", errors="ignore")


def _decoded_as_latin(ids: list[int], tokens: list[bytes]) -> str:
    return b"".join(tokens[id] for id in ids).decode("latin-1")


def _decoded_with_spaces(ids: list[int], tokens: list[bytes]) -> str:
    return b" ".join(tokens[id] for id in ids).decode("utf-8", errors="replace")


def _decode_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    singles = [bytes([byte]) for byte in range(256)]
    yield [104, 105], singles
    yield list(b" hi \n"), singles
    yield list("naïve 🦜".encode()), singles  # a character in several tokens
    yield [*"né".encode()][:2], singles  # half a character at the end
    tokens = [*singles, b"na", b"\xc3\xaf", b"ve"]
    yield [256, 257, 258], tokens
    yield [int(one) for one in rng.integers(0, 256, size=20)], singles


# ---- 4.6 ---------------------------------------------------------------------------------------------------


def _ratio(texts: list[str], encode: Any) -> float:
    return sum(len(text.encode()) for text in texts) / sum(len(encode(text)) for text in texts)


def _mean_of_ratios(texts: list[str], encode: Any) -> float:
    return float(np.mean([len(text.encode()) / len(encode(text)) for text in texts]))


def _ratio_of_characters(texts: list[str], encode: Any) -> float:
    return sum(map(len, texts)) / sum(len(encode(text)) for text in texts)


def _tokens_per_byte(texts: list[str], encode: Any) -> float:
    return 1 / _ratio(texts, encode)


def _pieces(text: str) -> list[str]:
    """A stand-in for a tokenizer: pieces of three characters."""
    return [text[at : at + 3] for at in range(0, len(text), 3)]


def _ratio_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield ["abcdef"], _pieces
    yield ["a short one", "né naïve, façade", "日本語のとても長い文章です"], _pieces
    yield ["x" * int(size) for size in rng.integers(1, 50, size=5)], _pieces


EXERCISES = [
    Exercise(
        number="4.1",
        title="Count the pairs of neighbours",
        name="pair_counts",
        parameters="words",
        task="""
How often are two symbols side by side?

words: a dictionary; a word, as a tuple of symbols, and how often it occurs: {("l", "o", "w"): 5}.
Returns a dictionary: a pair (left, right) and its count in the whole corpus: {("l", "o"): 5, ...}.
A pair never crosses the border of two words. Pairs that do not occur are not in the dictionary.
""",
        cases=_count_cases,
        reference=pair_counts,
        mistakes=(
            Mistake(
                "a word's own count is left out: a pair of a word that occurs 5 times occurs 5 times",
                _counted_once,
            ),
            Mistake("a pair that occurs twice in one word counts twice", _counted_in_words),
            Mistake("pairs cross the border of two words: count inside each word alone", _across_words),
            Mistake("a pair of several words has the count of the last: add them up", _counted_last),
            Mistake("two symbols that are not side by side are no pair", _counted_apart),
        ),
        properties=(
            Property(
                "each key should be a pair (left, right), in the order of the text",
                lambda given, found: set(found) <= {p for w in given[0] for p in itertools.pairwise(w)},
            ),
            Property(
                "a pair of the text is missing",
                lambda given, found: set(found) >= {p for w in given[0] for p in itertools.pairwise(w)},
            ),
        ),
        imports="",
    ),
    Exercise(
        number="4.2",
        title="Merge one pair",
        name="merge",
        parameters="symbols, pair",
        task="""
Join every occurrence of a pair, from left to right.

symbols: a list of strings, ["b", "a", "n", "a", "n", "a"]; pair: two strings, ("a", "n").
Returns a new list: ["b", "an", "an", "a"]. A symbol that was joined is not joined again: ("a", "a") makes
["aa", "a"] of three.
""",
        cases=_merge_cases,
        reference=merged,
        mistakes=(
            Mistake("only the first occurrence was merged", merged_once),
            Mistake(
                "it merges from the right: the first two of three equal symbols are joined",
                _merged_from_the_right,
            ),
            Mistake("it joins a part of a symbol: `ba`, `n` is not the pair `a`, `n`", merged_as_text),
            Mistake("the last symbol is lost where no pair ends there", _merged_without_the_last),
        ),
        properties=(
            Property(
                "each symbol should be a string, and not an empty one",
                lambda g, f: all(isinstance(one, str) and one for one in f),
            ),
            Property(
                "the letters changed: joined, the result must spell the text",
                lambda g, f: "".join(f) == "".join(g[0]),
            ),
            Property(
                "an occurrence of the pair is left",
                lambda g, f: g[1] not in list(itertools.pairwise(f)) or g[1][0] == g[1][1],
            ),
            Property(
                "something else than the pair was joined",
                lambda g, f: set(f) <= {*g[0], "".join(g[1])},
            ),
        ),
        imports="",
    ),
    Exercise(
        number="4.3",
        title="Learn the merges of a corpus",
        name="learn",
        parameters="words, merges",
        task="""
Byte pair encoding's training (1508.07909), on characters.

words: a dictionary of words and their counts, {"low": 5, "lower": 2}; merges: how many to learn.
Start with each word as its characters. Again and again: count the pairs, take the most frequent one (of
equally frequent ones the smallest, as Python orders tuples), and merge it in every word.
Returns the list of pairs in the order in which they were merged. It is shorter where no pair is left.
""",
        cases=_learn_cases,
        reference=learned,
        mistakes=(
            Mistake("pairs are counted once: count them again after each merge", _learned_without_merging),
            Mistake("it takes the rarest pair: the most frequent one is asked for", _learned_rarest),
            Mistake(
                "of equally frequent pairs the smallest is asked for, not the largest",
                _learned_last_of_equals,
            ),
            Mistake(
                "of equally frequent pairs the smallest is asked for, not the one that was met first",
                _learned_first_of_equals,
            ),
            Mistake("the words' counts are left out", _learned_without_counts),
        ),
        properties=(
            Property(
                "each entry should be a pair of two strings",
                lambda g, f: all(len(pair) == 2 and all(isinstance(one, str) for one in pair) for pair in f),
            ),
            Property("there are more merges than were asked for", lambda g, f: len(f) <= g[1]),
            Property("the same pair was merged twice", lambda g, f: len(set(f)) == len(f)),
            Property(
                "a pair crosses two words: words are learned from apart",
                lambda g, f: all(any("".join(pair) in word for word in g[0]) for pair in f),
            ),
        ),
        imports="",
    ),
    Exercise(
        number="4.4",
        title="Encode a word with learned merges",
        name="encode",
        parameters="word, merges",
        task="""
The tokens of a new word.

word: a string; merges: pairs in the order in which they were learned.
Start with the characters. Of the pairs that are side by side now, take the one that was learned first,
merge all its occurrences, and look again, until none is left that was learned. Returns the list of tokens.
""",
        cases=_encode_cases,
        reference=_encoded,
        mistakes=(
            Mistake(
                "it takes the longest known piece: BPE repeats its merges in the order of learning",
                _encoded_by_longest,
            ),
            Mistake(
                "it merges the leftmost pair first: the one that was learned first comes first",
                _encoded_leftmost,
            ),
            Mistake("it stops after one merge: look again until none is left", _encoded_in_one_round),
        ),
        properties=(
            Property("joined, the tokens must spell the word", lambda g, f: "".join(f) == g[0]),
            Property(
                "two tokens side by side could still be merged",
                lambda g, f: not any(pair in g[1] for pair in itertools.pairwise(f)),
            ),
        ),
        imports="",
    ),
    Exercise(
        number="4.5",
        title="From ids back to text",
        name="decode",
        parameters="ids, tokens",
        task="""
The text of ids, when tokens are bytes.

ids: a list of numbers; tokens: the bytes of each id, [b"a", b"\\xc3", ...].
Returns a string. Bytes that are no UTF-8 become U+FFFD, as `errors="replace"` makes them. Mind that one
character may be spread over two tokens.
""",
        cases=_decode_cases,
        reference=_decoded,
        mistakes=(
            Mistake(
                "each token is decoded by itself: a character may be spread over several tokens",
                _decoded_piece_by_piece,
            ),
            Mistake("bytes that are no UTF-8 are dropped: they become U+FFFD", _decoded_ignoring),
            Mistake("bytes are read as Latin-1: they are UTF-8", _decoded_as_latin),
            Mistake("there are spaces between the tokens: a token has its own", _decoded_with_spaces),
        ),
        imports="",
    ),
    Exercise(
        number="4.6",
        title="Measure a tokenizer: bytes a token",
        name="bytes_per_token",
        parameters="texts, encode",
        task="""
How much text one token stands for, over a whole collection.

texts: a list of strings; encode: a function from a string to its list of tokens.
Returns one number: the UTF-8 bytes of all texts over the tokens of all texts.
""",
        cases=_ratio_cases,
        reference=_ratio,
        mistakes=(
            Mistake(
                "it is the mean of each text's ratio: short texts then weigh as much as long ones",
                _mean_of_ratios,
            ),
            Mistake("it counts characters: a character may have several bytes", _ratio_of_characters),
            Mistake("it is upside down: tokens a byte", _tokens_per_byte),
        ),
        properties=(Property("it should be one number above 0", lambda g, f: float(f) > 0),),
        imports="",
    ),
]
