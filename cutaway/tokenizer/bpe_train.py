"""Learning merges quickly: the same merges as `bpe.train`, without counting everything again for each.

After a merge only the words that hold the pair change, so only their pairs are counted anew; a heap says
which pair is next, and an entry whose count has changed meanwhile goes back with the new one.
`native/tokenizer/bpe_train.cpp` does the same over one flat array; `merges_reference` is what it is compared
with, and what serves without it.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from operator import add
from typing import NamedTuple

import numpy as np

from cutaway import native
from cutaway.native import bpe_train as native_train
from cutaway.store.files import Progress
from cutaway.tokenizer.bpe import BYTES, Pair, replaced, spell
from cutaway.tokenizer.word_counter import Words


class Spelt(NamedTuple):
    """Words as base symbols: int32 [symbols], places in `alphabet` or -1 for what is not in it."""

    symbols: np.ndarray
    offsets: np.ndarray
    counts: np.ndarray
    alphabet: list[str]


_BYTE_IDS = np.zeros(256, np.int32)
_BYTE_IDS[np.argsort([ord(character) for character in BYTES])] = np.arange(256)


def spelt_in_bytes(words: Words) -> Spelt:
    """Words over the 256 bytes, in the order of their spelling (GPT-2's): "!" is 0."""
    return Spelt(_BYTE_IDS[words.text], words.offsets, words.counts, sorted(BYTES))


def spelt_in_characters(words: Words, most: int | None = None) -> Spelt:
    """Words over the characters that occur in them, or over the `most` frequent (ties: lower code point)."""
    text = words.text.tobytes()
    points = np.frombuffer(text.decode().encode("utf-32-le"), np.uint32)
    begins = (words.text & 0xC0) != 0x80
    offsets = np.concatenate([[0], np.cumsum(begins)])[words.offsets].astype(np.int64)
    found, inverse = np.unique(points, return_inverse=True)
    weights = np.repeat(words.counts, np.diff(offsets))
    often = np.zeros(len(found), np.int64)
    np.add.at(often, inverse, weights)
    kept = np.sort(np.lexsort((found, -often))[:most])
    places = np.full(len(found), -1, np.int32)
    places[kept] = np.arange(len(kept))
    alphabet = [chr(point) for point in found[kept]]
    return Spelt(places[inverse] if len(found) else np.zeros(0, np.int32), offsets, words.counts, alphabet)


def learn(
    spelt: Spelt,
    size: int,
    min_frequency: int = 1,
    reserved: Collection[str] = (),
    progress: Progress | None = None,
    join: Callable[[str, str], str] = add,
) -> list[Pair]:
    """The merges of `bpe.train`, in order, until alphabet and merges make `size` tokens.

    `join` says how the text of a token is written from those of the pair.
    """
    places = {symbol: place for place, symbol in enumerate(spelt.alphabet)}
    forbidden = [
        [places[symbol] for symbol in text] for text in reserved if text and set(text) <= places.keys()
    ]
    make = native_train.merges if native.available() else merges_reference
    tokens = list(spelt.alphabet)
    out: list[Pair] = []
    arrays = spelt.symbols, spelt.offsets, spelt.counts
    for rows in make(*arrays, len(spelt.alphabet), size, min_frequency, forbidden):
        for left, right in rows[:, :2].tolist():
            pair = tokens[left], tokens[right]
            tokens.append(join(*pair))
            out.append(pair)
        if progress is not None:
            progress("learning merges", len(tokens), size)
    return out


def merges_reference(
    symbols: np.ndarray,
    offsets: np.ndarray,
    counts: np.ndarray,
    alphabet: int,
    size: int,
    min_frequency: int,
    reserved: Collection[Sequence[int]] = (),
    step: int = 256,
) -> Iterator[np.ndarray]:
    """`cutaway.native.bpe_train.merges`, in Python."""
    corpus = _Corpus(symbols, offsets, counts)
    texts: list[tuple[int, ...]] = [(symbol,) for symbol in range(alphabet)]
    forbidden = {tuple(text) for text in reserved}
    rows: list[tuple[int, int, int, int]] = []
    while len(texts) < size:
        best = corpus.most_frequent(max(min_frequency, 1))
        if best is None:
            break
        count, pair = best
        text = texts[pair[0]] + texts[pair[1]]
        if text in forbidden:
            continue
        made = len(texts)
        texts.append(text)
        corpus.merge(pair, made)
        rows.append((*pair, made, count))
        if len(rows) == step:
            yield np.array(rows, np.int64)
            rows = []
    if rows:
        yield np.array(rows, np.int64)


def pair_counts(words: Mapping[str, int], merges: Sequence[Pair], bytewise: bool) -> list[int]:
    """How often each merge's pair occurred when it was made, in words with their counts: the slow way."""
    now = {word: list(spell(word.encode()) if bytewise else word) for word in words}
    counts = []
    for pair in merges:
        counts.append(sum(words[word] * sum(two == pair for two in pairwise(now[word])) for word in words))
        now = {word: replaced(symbols, pair, "".join(pair)) for word, symbols in now.items()}
    return counts


class _Corpus:
    """Words as they stand, with the counts of their pairs and the words in which each pair is."""

    def __init__(self, symbols: np.ndarray, offsets: np.ndarray, counts: np.ndarray) -> None:
        self.words = [symbols[start:stop].tolist() for start, stop in pairwise(offsets)]
        self.weights: list[int] = counts.tolist()
        self.counts: defaultdict[tuple[int, int], int] = defaultdict(int)
        self.inside: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        for i, word in enumerate(self.words):
            self._add(i, word, self.weights[i])
        self.heap = [(-count, *pair) for pair, count in self.counts.items() if min(pair) >= 0]
        heapify(self.heap)

    def most_frequent(self, rarest: int) -> tuple[int, tuple[int, int]] | None:
        """The next pair, taken off the heap; None when all are rarer than `rarest`."""
        while self.heap:
            negated, *ids = heappop(self.heap)
            pair = ids[0], ids[1]
            count = self.counts[pair]
            if count < rarest:
                continue
            if count == -negated:
                return count, pair
            heappush(self.heap, (-count, *pair))
        return None

    def merge(self, pair: tuple[int, int], made: int) -> None:
        """The pair becomes `made`, in every word from left to right."""
        changed: set[tuple[int, int]] = set()
        for i in list(self.inside[pair]):
            word, weight = self.words[i], self.weights[i]
            self._add(i, word, -weight)
            self.words[i] = word = _joined(word, pair, made)
            self._add(i, word, weight)
            changed |= {near for near in pairwise(word) if made in near and min(near) >= 0}
        for near in changed:
            heappush(self.heap, (-self.counts[near], *near))
        del self.inside[pair]

    def _add(self, i: int, word: list[int], weight: int) -> None:
        for pair in pairwise(word):
            self.counts[pair] += weight
            if weight > 0:
                self.inside[pair].add(i)


def _joined(word: list[int], pair: tuple[int, int], made: int) -> list[int]:
    out: list[int] = []
    place = 0
    while place < len(word):
        both = word[place] == pair[0] and word[place + 1 : place + 2] == [pair[1]]
        out.append(made if both else word[place])
        place += 2 if both else 1
    return out
