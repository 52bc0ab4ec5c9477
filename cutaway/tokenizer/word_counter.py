"""Count distinct words: in the native core where it can split by the pattern, else in Python."""

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from cutaway import native
from cutaway.native import word_counter as native_count
from cutaway.tokenizer.fast import SCANNED
from cutaway.tokenizer.pretokenize import fused
from cutaway.tokenizer.word_split import WordSplitter


class Words(NamedTuple):
    """Distinct words: UTF-8 uint8, bounds int64 [n + 1], and how often each occurs int64 [n]."""

    text: np.ndarray
    offsets: np.ndarray
    counts: np.ndarray

    def items(self) -> list[tuple[bytes, int]]:
        """Each word with its count."""
        text, bounds = self.text.tobytes(), self.offsets.tolist()
        spelt = [text[start:stop] for start, stop in pairwise(bounds)]
        return list(zip(spelt, self.counts.tolist(), strict=True))


_LOOKED_AT = 1 << 16


class WordCounter:
    """Counts in a Python dictionary: the reference of the native table, and what any pattern can use."""

    def __init__(self, splitter: WordSplitter) -> None:
        self.splitter = splitter
        self.table: Counter[str] = Counter()

    def add(self, text: bytes, threads: int | None = None) -> None:
        """Count the words of a text in UTF-8."""
        self.table.update(self.splitter.words(text.decode()))

    def put(self, words: Words) -> None:
        """Add words that were counted elsewhere."""
        self.table.update({word.decode(): count for word, count in words.items()})

    def boundary(self, text: bytes) -> int:
        """The last byte at which a text that goes on may be cut in two, so that its words stay the same.

        0 for none. The end is looked at first.
        """
        for size in (_LOOKED_AT, len(text)):
            tail = text[-size:].decode("utf-8", "surrogateescape")
            place = self.splitter.boundary(tail)
            if place:
                return len(text) - len(tail[place:].encode("utf-8", "surrogateescape"))
        return 0

    def prune(self, limit: int) -> int:
        """Past `limit` words, drop the rarest so that half are left; the highest count dropped, or 0.

        Words of one count stay or go together, so that no order matters.
        """
        if len(self.table) <= limit:
            return 0
        counts = np.fromiter(self.table.values(), np.int64, len(self.table))
        rank = len(counts) - 1 - limit // 2
        dropped = int(np.partition(counts, rank)[rank])
        self.table = Counter({word: count for word, count in self.table.items() if count > dropped})
        return dropped

    def words(self) -> Words:
        """All words, in no particular order."""
        return packed({word.encode(): count for word, count in self.table.items()})

    def __len__(self) -> int:
        return len(self.table)


class NativeWordCounter:
    """Counts in the native core, which scans the text by itself; special tokens are cut out before."""

    def __init__(self, splitter: WordSplitter, scanner: str) -> None:
        self.splitter, self.scanner, self.table = splitter, scanner, native_count.WordCounter()

    def add(self, text: bytes, threads: int | None = None) -> None:
        """Count the words of a text in UTF-8, on several threads."""
        if not any(special.encode() in text for special in self.splitter.special):
            self.table.add(self.scanner, text, threads)
            return
        for part in self.splitter.stretches(text.decode()):
            self.table.add(self.scanner, part.encode(), threads)

    def put(self, words: Words) -> None:
        """Add words that were counted elsewhere."""
        self.table.put(*words)

    def boundary(self, text: bytes) -> int:
        """As `WordCounter.boundary`, though not always the last; special tokens are left whole."""
        special = [token.encode() for token in self.splitter.special]
        place = native_count.safe_cut(self.scanner, text, len(text) - max(map(len, special), default=1))
        across = any(
            token in text[max(place + 1 - len(token), 0) : place + len(token) - 1] for token in special
        )
        return place if place and not across else WordCounter(self.splitter).boundary(text)

    def prune(self, limit: int) -> int:
        """As `WordCounter.prune`."""
        return self.table.prune(limit)

    def words(self) -> Words:
        """All words, in no particular order."""
        return Words(*self.table.words())

    def __len__(self) -> int:
        return len(self.table)


def word_counter(splitter: WordSplitter) -> WordCounter | NativeWordCounter:
    """An empty table for the words of a splitter, native where it can be."""
    scanner = None if splitter.lines or splitter.normalizer else SCANNED.get(fused(splitter.steps))
    if scanner is None or not native.available():
        return WordCounter(splitter)
    return NativeWordCounter(splitter, scanner)


def packed(counts: Mapping[bytes, int]) -> Words:
    """Words as arrays, in the order given."""
    lengths = np.fromiter(map(len, counts), np.int64, len(counts))
    return Words(
        np.frombuffer(b"".join(counts), np.uint8),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.fromiter(counts.values(), np.int64, len(counts)),
    )
