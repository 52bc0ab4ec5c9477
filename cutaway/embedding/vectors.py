"""Words with a vector each: which are alike, and what is to one word as another is to a third.

The words may be a corpus's, or the tokens of a language model's embedding table; the questions are the same.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cutaway.embedding import neighbours
from cutaway.embedding.subwords import Subwords
from cutaway.errors import UserError, quoted
from cutaway.shapes import Float


class Near(NamedTuple):
    """A word and how near it is: the cosine."""

    word: str
    cosine: float


@dataclass
class Vectors:
    """``words`` [v], most frequent first where that is known, and their ``table`` [v d].

    ``grams`` holds the vectors of fastText's n-grams, which make vectors for words that are not in the table.
    """

    words: Sequence[str]
    table: Float[np.ndarray, "v d"]
    subwords: Subwords | None = None
    grams: np.ndarray | None = None
    ids: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.words) != len(self.table):
            raise UserError(f"{len(self.words)} words do not go with {len(self.table)} vectors")
        self.ids = {}
        for id, word in enumerate(self.words):
            self.ids.setdefault(word, id)

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self.ids

    def vector(self, word: str) -> Float[np.ndarray, "d"]:
        """A word's vector; of a word that is not in the table, the mean of its n-grams' where there are any,
        else UserError.
        """
        if word in self.ids:
            return self.table[self.ids[word]]
        rows = self._gram_rows(word)
        if self.grams is not None and rows:
            return self.grams[rows].mean(axis=0)
        near = difflib.get_close_matches(word, self.ids, n=1) if len(self) <= 100_000 else []
        guess = f"; did you mean {quoted(near[0])}?" if near else f" among its {len(self)} words"
        raise UserError(f"there is no vector for {quoted(word)}{guess}")

    def _gram_rows(self, word: str) -> list[int]:
        return [] if self.subwords is None else [r - self.subwords.words for r in self.subwords.rows(word)]

    def nearest(self, word: str, count: int = 10) -> list[Near]:
        """The words whose vectors point most nearly the same way, best first."""
        return self._named(self.vector(word)[None], [word], count)

    def analogy(self, a: str, b: str, c: str, count: int = 5) -> list[Near]:
        """What is to ``c`` as ``b`` is to ``a``: nearest to b - a + c of unit vectors, none of the three."""
        one, other, third = neighbours.unit(np.stack([self.vector(word) for word in (a, b, c)]))
        return self._named((other - one + third)[None], [a, b, c], count)

    def _named(self, query: np.ndarray, without: list[str], count: int) -> list[Near]:
        known = [self.ids[word] for word in without if word in self.ids]
        ids, cosines = neighbours.search(self.table, query, count, exclude=np.array([known], np.int64))
        return [Near(self.words[int(id)], float(near)) for id, near in zip(ids[0], cosines[0], strict=True)]

    def cosine(self, one: str, other: str) -> float:
        """The cosine of two words' vectors."""
        left, right = neighbours.unit(np.stack([self.vector(one), self.vector(other)]))
        return float(left @ right)
