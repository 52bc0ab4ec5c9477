"""fastText's subwords (1607.04606): a word is the sum of its own vector and those of its character n-grams.

"where" is <wh, whe, her, ere, re> and longer ones, and <where> itself: words that share a stem share vectors,
and a word that was never seen has one all the same. N-grams are hashed into buckets, which are given rows
only if the vocabulary uses them, so that memory follows the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Subwords:
    """N-grams of ``least`` to ``most`` characters, hashed into ``buckets``; the ``used`` buckets have rows.

    ``used`` (int64, sorted): in this order their rows follow the ``words`` rows of the vocabulary.
    """

    least: int
    most: int
    buckets: int
    words: int
    used: np.ndarray

    def rows(self, word: str) -> list[int]:
        """The rows of a word's n-grams, of those that the vocabulary had."""
        wanted = np.array(hashes(word, self.least, self.most, self.buckets), np.int64)
        at = np.searchsorted(self.used, wanted)
        known = (at < len(self.used)) & (self.used[np.minimum(at, len(self.used) - 1)] == wanted)
        return (self.words + at[known]).tolist()


def grams(word: str, least: int, most: int) -> list[str]:
    """The n-grams of <word>, without <word> itself."""
    marked = f"<{word}>"
    sizes = range(least, min(most, len(marked) - 1) + 1)
    return [marked[i : i + n] for n in sizes for i in range(len(marked) - n + 1)]


def hashes(word: str, least: int, most: int, buckets: int) -> list[int]:
    """The buckets of a word's n-grams: 32-bit FNV-1a of their UTF-8, as in fastText."""
    return [_fnv(gram.encode()) % buckets for gram in grams(word, least, most)]


def _fnv(text: bytes) -> int:
    h = 2166136261
    for byte in text:
        signed = byte if byte < 128 else byte | 0xFFFFFF00  # fastText hashes signed characters
        h = ((h ^ signed) * 16777619) & 0xFFFFFFFF
    return h


def subwords(
    words: Iterable[str], least: int, most: int, buckets: int
) -> tuple[Subwords, np.ndarray, np.ndarray]:
    """The buckets of a vocabulary, and each word's rows, its own first: ends int64 [v], rows int32."""
    hashed = [hashes(word, least, most, buckets) for word in words]
    used = np.unique(np.array([bucket for one in hashed for bucket in one], np.int64))
    flat = np.searchsorted(used, np.array([bucket for one in hashed for bucket in one], np.int64)) + len(
        hashed
    )
    counts = np.array([len(one) for one in hashed], np.int64)
    rows = np.insert(flat, np.cumsum(counts) - counts, np.arange(len(hashed)))
    return Subwords(least, most, buckets, len(hashed), used), np.cumsum(counts + 1), rows.astype(np.int32)
