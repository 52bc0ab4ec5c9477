"""Chapter 3, words, characters, subwords: vocabularies, unknown words, Zipf's law, WordPiece, Unigram."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np

from cutaway.course.exercise import Arguments, Exercise, Mistake, Property
from cutaway.tokenizer.unigram import Unigram
from cutaway.tokenizer.wordpiece import WordPiece

TITLE = "Words, characters, subwords"
QUESTION = "Should a piece of text be a word, a letter, or something between, and who decides where to cut?"


def _text(rng: np.random.Generator, count: int) -> list[str]:
    """Words whose frequencies fall as those of a language do."""
    names = [f"w{n}" for n in range(60)]
    share = 1 / np.arange(1, 61)
    return [str(one) for one in rng.choice(names, size=count, p=share / share.sum())]


# ---- 3.1 ---------------------------------------------------------------------------------------------------


def _vocabulary(words: list[str], size: int) -> list[str]:
    counts = Counter(words)
    return ["<unk>", *sorted(counts, key=lambda word: (-counts[word], word))[: size - 1]]


def _vocabulary_too_long(words: list[str], size: int) -> list[str]:
    return _vocabulary(words, size + 1)


def _vocabulary_by_name(words: list[str], size: int) -> list[str]:
    return ["<unk>", *sorted(set(words))[: size - 1]]


def _vocabulary_of_the_rarest(words: list[str], size: int) -> list[str]:
    counts = Counter(words)
    return ["<unk>", *sorted(counts, key=lambda word: (counts[word], word))[: size - 1]]


def _vocabulary_as_met(words: list[str], size: int) -> list[str]:
    return ["<unk>", *(word for word, _ in Counter(words).most_common(size - 1))]


def _vocabulary_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield ["b", "a", "b", "c", "a", "d"], 3
    yield ["z", "y", "x"], 3
    yield ["The", "the", "the", "a"], 5
    yield _text(rng, 200), 20


# ---- 3.2 ---------------------------------------------------------------------------------------------------


def _unknown_rate(vocabulary: list[str], words: list[str]) -> float:
    known = set(vocabulary)
    return sum(word not in known for word in words) / len(words)


def _unknown_kinds(vocabulary: list[str], words: list[str]) -> float:
    return _unknown_rate(vocabulary, sorted(set(words)))


def _known_rate(vocabulary: list[str], words: list[str]) -> float:
    return 1 - _unknown_rate(vocabulary, words)


def _unknown_count(vocabulary: list[str], words: list[str]) -> float:
    return _unknown_rate(vocabulary, words) * len(words)


def _unknown_the_other_way(vocabulary: list[str], words: list[str]) -> float:
    return _unknown_rate(words, vocabulary)


def _unknown_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield ["a", "b"], ["a", "c", "c", "c", "b"]
    yield ["ab", "zz"], ["a", "b", "ab", "q", "q"]
    yield _vocabulary(_text(rng, 300), 15), _text(rng, 200)


# ---- 3.3 ---------------------------------------------------------------------------------------------------


def _zipf(words: list[str]) -> float:
    found = np.sort(np.array(list(Counter(words).values()), float))[::-1]
    return float(-np.polyfit(np.log(np.arange(1, len(found) + 1)), np.log(found), 1)[0])


def _zipf_sign(words: list[str]) -> float:
    return -_zipf(words)


def _zipf_without_logarithm(words: list[str]) -> float:
    found = np.sort(np.array(list(Counter(words).values()), float))[::-1]
    return float(-np.polyfit(np.arange(1, len(found) + 1), found, 1)[0])


def _zipf_from_zero(words: list[str]) -> float:
    found = np.sort(np.array(list(Counter(words).values()), float))[::-1]
    return float(-np.polyfit(np.log(np.arange(2, len(found) + 2)), np.log(found), 1)[0])


def _zipf_half(words: list[str]) -> float:
    found = np.sort(np.array(list(Counter(words).values()), float))[::-1]
    return float(-np.polyfit(np.arange(1, len(found) + 1), np.log(found), 1)[0])


def _zipf_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield (["a"] * 8 + ["b"] * 4 + ["c"] * 2,)
    yield (_text(rng, 3000),)


# ---- 3.4 ---------------------------------------------------------------------------------------------------


def _wordpiece(word: str, vocabulary: list[str]) -> list[str]:
    ids = {piece: n for n, piece in enumerate(["<unk>", *vocabulary])}
    found = WordPiece(ids, unknown=0).encode(word)
    return ["<unk>"] if 0 in found else [["<unk>", *vocabulary][id] for id in found]


def _wordpiece_shortest(word: str, vocabulary: list[str]) -> list[str]:
    pieces: list[str] = []
    at = 0
    while at < len(word):
        ends = (
            end for end in range(at + 1, len(word) + 1) if ("##" if at else "") + word[at:end] in vocabulary
        )
        end = next(ends, None)
        if end is None:
            return ["<unk>"]
        pieces.append(("##" if at else "") + word[at:end])
        at = end
    return pieces


def _wordpiece_without_marks(word: str, vocabulary: list[str]) -> list[str]:
    return [piece.removeprefix("##") for piece in _wordpiece(word, vocabulary)]


def _wordpiece_keeps_the_rest(word: str, vocabulary: list[str]) -> list[str]:
    pieces: list[str] = []
    at = 0
    while at < len(word):
        mark = "##" if at else ""
        end = next((end for end in range(len(word), at, -1) if mark + word[at:end] in vocabulary), None)
        if end is None:
            return [*pieces, "<unk>"]
        pieces.append(mark + word[at:end])
        at = end
    return pieces


def _wordpiece_in_letters(word: str, vocabulary: list[str]) -> list[str]:
    return [word[:1], *(f"##{letter}" for letter in word[1:])]


def _piece_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    vocabulary = ["un", "u", "##n", "##bel", "##believ", "##able", "##ab", "##le", "a", "able"]
    yield "unbelievable", vocabulary
    yield "able", vocabulary
    yield "unx", vocabulary
    letters = ["a", "b", "##a", "##b"]
    extra = ["ab", "##ba", "##aab", "bba", "##bb"]
    for _ in range(4):
        yield "".join(map(str, rng.choice(["a", "b"], 9))), letters + extra


# ---- 3.5, 3.6 ----------------------------------------------------------------------------------------------


def _scores(rng: np.random.Generator) -> dict[str, float]:
    pieces = {"a", "b", "c"} | {
        "".join(map(str, rng.choice(list("abc"), int(n)))) for n in rng.integers(2, 5, 12)
    }
    return {piece: -float(rng.uniform(0.5, 6)) for piece in sorted(pieces)}


def _viterbi(word: str, scores: dict[str, float]) -> list[str]:
    return [word[edge.start : edge.stop] for edge in Unigram(scores, {}).best(word)]


def _greedy(word: str, scores: dict[str, float]) -> list[str]:
    found, at = [], 0
    while at < len(word):
        end = next(end for end in range(len(word), at, -1) if word[at:end] in scores)
        found.append(word[at:end])
        at = end
    return found


def _fewest(word: str, scores: dict[str, float]) -> list[str]:
    return _viterbi(word, dict.fromkeys(scores, -1.0))


def _least(word: str, scores: dict[str, float]) -> list[str]:
    return _viterbi(word, {piece: -1 / -score for piece, score in scores.items()})


def _letters(word: str, scores: dict[str, float]) -> list[str]:
    return list(word)


def _viterbi_cases(rng: np.random.Generator) -> Iterator[Arguments]:
    yield "abc", {"a": -1.0, "b": -1.0, "c": -1.0, "ab": -5.0, "bc": -0.5}
    yield "aab", {"a": -2.0, "b": -2.0, "aa": -1.0, "ab": -1.5}
    for _ in range(8):
        yield "".join(map(str, rng.choice(list("abc"), 10))), _scores(rng)
    yield "ab" * 30, {"a": -1.0, "b": -1.5, "ab": -2.0, "ba": -2.25}  # 2^59 cuts


SLOW = "are all cuts tried, one by one? A word of 60 letters has 2^59"


def _total(word: str, scores: dict[str, float]) -> float:
    log = [0.0] + [-math.inf] * len(word)
    for end in range(1, len(word) + 1):
        ways = [log[begin] + scores[word[begin:end]] for begin in range(end) if word[begin:end] in scores]
        log[end] = float(np.logaddexp.reduce(ways)) if ways else -math.inf
    return log[-1]


def _total_of_the_best(word: str, scores: dict[str, float]) -> float:
    return sum(scores[piece] for piece in _viterbi(word, scores))


def _total_not_logarithm(word: str, scores: dict[str, float]) -> float:
    return math.exp(_total(word, scores))


def _total_of_logarithms(word: str, scores: dict[str, float]) -> float:
    log = [0.0] + [0.0] * len(word)
    for end in range(1, len(word) + 1):
        log[end] = sum(
            log[begin] + scores[word[begin:end]] for begin in range(end) if word[begin:end] in scores
        )
    return log[-1]


def _ways(word: str, scores: dict[str, float]) -> float:
    return _total(word, dict.fromkeys(scores, 0.0))


WAYS = "the pieces of a cut must spell the word"
EXERCISES = [
    Exercise(
        number="3.1",
        title="A vocabulary of words",
        name="vocabulary",
        parameters="words, size",
        task="""
The most frequent words of a text get a number, and all others share one.

words: a text as a list of words; size: how many entries. Returns a list of `size` texts (fewer where
there are fewer words): "<unk>" first, then the words by falling frequency, of equally frequent ones in
the order of the alphabet.
""",
        cases=_vocabulary_cases,
        reference=_vocabulary,
        mistakes=(
            Mistake("it is one too long: <unk> counts", _vocabulary_too_long),
            Mistake(
                "the words are in the order of the alphabet: the most frequent come first",
                _vocabulary_by_name,
            ),
            Mistake("it takes the rarest words", _vocabulary_of_the_rarest),
            Mistake(
                "equally frequent words are in the order in which they came: it is that of the alphabet",
                _vocabulary_as_met,
            ),
        ),
        properties=(
            Property("<unk> should be the first entry", lambda g, f: f[0] == "<unk>"),
            Property("a word should be there once", lambda g, f: len(set(f)) == len(f)),
        ),
        imports="",
    ),
    Exercise(
        number="3.2",
        title="How much is unknown?",
        name="unknown_rate",
        parameters="vocabulary, words",
        task="""
vocabulary: a list of texts; words: another text, as a list of words. Returns the share of the words of
that text, each counted as often as it occurs, that are not in the vocabulary: a number from 0 to 1.
""",
        cases=_unknown_cases,
        reference=_unknown_rate,
        mistakes=(
            Mistake("each word counts as often as it occurs", _unknown_kinds),
            Mistake("that is the share that is known", _known_rate),
            Mistake("that is a count: a share is asked for", _unknown_count),
            Mistake(
                "it counts entries of the vocabulary: the words of the text are asked for",
                _unknown_the_other_way,
            ),
        ),
        properties=(Property("a share should be between 0 and 1", lambda g, f: 0 <= float(f) <= 1),),
        imports="",
    ),
    Exercise(
        number="3.3",
        title="Zipf's law, measured",
        name="zipf_exponent",
        parameters="words",
        task="""
Few words are frequent, and most are rare: the count of the r-th most frequent word is about C / r^s.

words: a text as a list of words. Sort the counts, the largest first, and fit a straight line by least
squares to ln(count) over ln(rank), ranks from 1. Returns s, a positive number.
""",
        cases=_zipf_cases,
        reference=_zipf,
        mistakes=(
            Mistake("the line falls: s is minus its steepness", _zipf_sign),
            Mistake("the logarithms are missing", _zipf_without_logarithm),
            Mistake("ranks begin at 1", _zipf_from_zero),
            Mistake("the logarithm of the rank is missing", _zipf_half),
        ),
    ),
    Exercise(
        number="3.4",
        title="WordPiece",
        name="wordpiece",
        parameters="word, vocabulary",
        task="""
BERT's way to cut (1810.04805): the longest piece that begins the word, then the longest that goes on, and
so on.

word: a text; vocabulary: a list of pieces; those that go on within a word begin with "##". Returns the
list of pieces, with their marks. If at some place no piece fits, the whole word is ["<unk>"].
""",
        cases=_piece_cases,
        reference=_wordpiece,
        mistakes=(
            Mistake("it takes the shortest piece: the longest is asked for", _wordpiece_shortest),
            Mistake("the marks are missing: pieces within a word begin with ##", _wordpiece_without_marks),
            Mistake(
                "the beginning of a word that cannot be finished is kept: the whole word is <unk>",
                _wordpiece_keeps_the_rest,
            ),
            Mistake("those are single letters", _wordpiece_in_letters),
        ),
        imports="",
    ),
    Exercise(
        number="3.5",
        title="Unigram: the best cut",
        name="best_cut",
        parameters="word, scores",
        task="""
Unigram (1804.10959) gives each piece a probability, and cuts a word where the product is largest.

word: a text; scores: a dictionary of pieces and the logarithms of their probabilities; every letter is a
piece. Returns the list of pieces that spell the word and whose scores have the largest sum. Trying all
cuts takes too long: the best way to reach a place goes through the best way to reach the place where its
last piece begins.
""",
        cases=_viterbi_cases,
        seconds=20.0,
        slow=SLOW,
        reference=_viterbi,
        mistakes=(
            Mistake("it takes the longest piece each time: two shorter ones may be likelier", _greedy),
            Mistake("it takes the fewest pieces: the sum of their scores counts", _fewest),
            Mistake("it prefers low scores: a score near 0 is likely", _least),
            Mistake("those are single letters", _letters),
        ),
        properties=(
            Property(WAYS, lambda g, f: "".join(f) == g[0]),
            Property("a piece is not in the vocabulary", lambda g, f: all(piece in g[1] for piece in f)),
        ),
        imports="",
    ),
    Exercise(
        number="3.6",
        title="Unigram: all cuts together",
        name="log_probability",
        parameters="word, scores",
        task="""
To learn the probabilities, Unigram asks how likely a word is by any cut.

word, scores: as in 3.5. Returns the logarithm of the sum, over all cuts of the word, of the product of
its pieces' probabilities. There may be thousands of cuts: go from left to right, as in 3.5, and add up
where you took the best.
""",
        cases=_viterbi_cases,
        seconds=20.0,
        slow=SLOW,
        reference=_total,
        mistakes=(
            Mistake("that is the best cut's: all cuts add up", _total_of_the_best),
            Mistake("that is the probability: its logarithm is asked for", _total_not_logarithm),
            Mistake("logarithms were added where probabilities add up: e^score first", _total_of_logarithms),
            Mistake("that is the logarithm of how many cuts there are", _ways),
        ),
        properties=(
            Property(
                "it cannot be below the best cut's",
                lambda g, f: float(f) >= _total_of_the_best(*g) - 1e-9,
            ),
        ),
        imports="import math",
    ),
]
