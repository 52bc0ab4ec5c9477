"""Word vectors: nearest words, and analogies (what is to one word as another is to a third).

The words may be a corpus's, or the tokens of a language model's embedding table; the questions are the same.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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
        """A word's vector; without one the mean of its n-grams' vectors, else UserError."""
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


@dataclass(frozen=True)
class Moment:
    """A row at a step: its norm, its cosine with the row as first seen, and its neighbours."""

    step: int
    norm: float
    cosine: float
    near: tuple[Near, ...]


@dataclass
class Watched:
    """Records how chosen rows change in training; ``words`` names every row, ``moments`` are the records.

    seen = Watched({"king": 17, "queen": 40}, words)
    for step in training:
        seen.record(step, model.embedding.weight)    # any table [v d]: numpy's or torch's
    print(seen)
    """

    rows: Mapping[str, int]
    words: Sequence[str]
    count: int = 5
    moments: dict[str, list[Moment]] = field(default_factory=dict)
    first: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def record(self, step: int, table: Any) -> None:
        """Look at a table [v d] as it is now."""
        rows = _numbers(table)
        ids, cosines = neighbours.nearest(rows, np.array(list(self.rows.values()), np.int64), self.count)
        for name, near, how in zip(self.rows, ids.tolist(), cosines.tolist(), strict=True):
            row = rows[self.rows[name]].astype(np.float64)
            first, norm = self.first.setdefault(name, row.copy()), float(np.linalg.norm(row))
            size = norm * float(np.linalg.norm(first))
            same = float(row @ first) / size if size else 0.0
            found = tuple(Near(self.words[int(id)], cosine) for id, cosine in zip(near, how, strict=True))
            self.moments.setdefault(name, []).append(Moment(step, norm, same, found))

    def __str__(self) -> str:
        return "\n".join(line for name in self.moments for line in [name, *map(_line, self.moments[name])])


def _line(moment: Moment) -> str:
    near = ", ".join(f"{word} {cosine:.2f}" for word, cosine in moment.near)
    return f"  {moment.step:>10}  norm {moment.norm:.2f}  cosine with its start {moment.cosine:+.2f}  {near}"


def _numbers(table: Any) -> np.ndarray:
    """A copy of a table as numpy, so that what it learns later does not change it."""
    if hasattr(table, "detach"):
        table = table.detach().float().cpu().numpy()
    return np.array(table, np.float32)
