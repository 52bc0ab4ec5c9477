"""Pretraining's batches, as a function of (seed, step): documents packed into rows, sources mixed.

The stream of a source is cut into rows of ``context`` tokens and one more, the last target. Each epoch the
cut is shifted by a random amount and the rows are read in a random order: a permutation that is computed for
one place at a time (a four-round Feistel cipher, walked until it lands inside), so that its length costs
nothing. A token sees only its own document: ``pos`` starts again where a document does, and ``documents``
numbers them within the row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol, runtime_checkable

import numpy as np

from cutaway.errors import UserError

CYCLE = 1024  # rows over which a mixture has its proportions exactly
ROUNDS = 4


@runtime_checkable
class Stream(Protocol):
    """Tokens that can be read from anywhere: a ``Corpus``."""

    tokens: int

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class Batch:
    """[b t] each: int64 ids, targets, positions and documents, and float32 weights of the loss.

    A target with weight 0 is not trained on. ``extra`` holds what an objective reads beside them, [b ...]
    each. A step's sum of losses is divided by the sum of its batches' ``divisor``; None: the sum of the loss
    weights.
    """

    ids: np.ndarray
    targets: np.ndarray
    pos: np.ndarray
    documents: np.ndarray
    loss_weights: np.ndarray
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    divisor: float | None = None

    @property
    def whole(self) -> bool:
        """Whether every row is one document, so that attention needs no borders."""
        return not self.documents.any()


def number(*parts: int | str) -> int:
    """64 bits that these decide, the same on every machine."""
    data = ":".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def permuted(place: int, size: int, seed: int) -> int:
    """The image of ``place`` under a pseudo-random permutation of ``size`` things, chosen by ``seed``."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(ROUNDS):
            left, right = right, left ^ (_mixed(right, seed + turn) & mask)
        place = (left << half) | right
        if place < size:
            return place


def _mixed(x: int, seed: int) -> int:
    """The finaliser of SplitMix64: every bit in moves every bit out."""
    word = (1 << 64) - 1
    x = (x + seed * 0x9E3779B97F4A7C15) & word
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & word
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & word
    return x ^ (x >> 31)


class Span:
    """Rows of one stream between two of its tokens, in an order that ``seed`` decides."""

    def __init__(self, stream: Stream, start: int, stop: int, context: int, seed: int) -> None:
        self.stream, self.start, self.context, self.seed = stream, start, context, seed
        self.rows = (stop - start - context) // context
        if self.rows < 1:
            raise UserError(f"{stop - start:,} tokens do not fill one row of {context}: give more text")

    def read(self, n: int) -> Batch:
        """The n-th row of the run; after ``rows`` of them a new epoch begins, cut and ordered anew."""
        epoch, place = divmod(n, self.rows)
        row = permuted(place, self.rows, number(self.seed, "order", epoch))
        shift = number(self.seed, "shift", epoch) % self.context
        return self.at(self.start + shift + row * self.context)

    def row(self, n: int) -> Batch:
        """The n-th row from the start, in the text's own order."""
        return self.at(self.start + n * self.context)

    def at(self, first: int) -> Batch:
        """The row that begins at this token of the stream."""
        ids, begins = self.stream.read(first, first + self.context + 1)
        places = np.arange(first, first + self.context)
        begins = np.maximum(begins[:-1], first)
        documents = np.cumsum(np.concatenate(([0], begins[1:] != begins[:-1])))
        weights = np.ones(self.context, np.float32)
        return Batch(ids[None, :-1], ids[None, 1:], (places - begins)[None], documents[None], weights[None])


class Mixture:
    """Several spans, read in proportion to ``weights``: exact for every ``CYCLE`` rows."""

    def __init__(self, spans: Sequence[Span], weights: Sequence[float], seed: int) -> None:
        if len(spans) != len(weights) or not spans or min(weights) <= 0:
            raise UserError(f"a mixture needs a weight above zero for each source, not {list(weights)}")
        self.spans, self.seed = list(spans), seed
        self.quota = apportioned(weights, CYCLE)
        self._cycle = cache(self._drawn)

    def read(self, n: int) -> Batch:
        """The n-th row of the run."""
        if len(self.spans) == 1:
            return self.spans[0].read(n)
        cycle, place = divmod(n, CYCLE)
        order = self._cycle(cycle)
        source = int(order[place])
        before = int((order[:place] == source).sum())
        return self.spans[source].read(cycle * self.quota[source] + before)

    def batch(self, first: int, count: int) -> Batch:
        """``count`` rows of the run from the ``first`` on."""
        return stacked([self.read(n) for n in range(first, first + count)])

    def _drawn(self, cycle: int) -> np.ndarray:
        """The source of each row of a cycle."""
        order = np.repeat(np.arange(len(self.spans)), self.quota)
        seed = number(self.seed, "mixture", cycle)
        return order[[permuted(place, CYCLE, seed) for place in range(CYCLE)]]


def stacked(rows: Sequence[Batch]) -> Batch:
    """Rows as one batch."""

    def joined(arrays: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate(list(arrays))

    divisors = [row.divisor for row in rows if row.divisor is not None]
    return Batch(
        joined(row.ids for row in rows),
        joined(row.targets for row in rows),
        joined(row.pos for row in rows),
        joined(row.documents for row in rows),
        joined(row.loss_weights for row in rows),
        {name: joined(row.extra[name] for row in rows) for name in rows[0].extra},
        sum(divisors) if divisors else None,
    )


def apportioned(weights: Sequence[float], total: int) -> list[int]:
    """Whole numbers that add up to ``total``, as near to the weights as can be (largest remainders)."""
    exact = np.array(weights, np.float64) / sum(weights) * total
    quota = np.floor(exact).astype(int)
    for n in np.argsort(-(exact - quota), kind="stable")[: total - quota.sum()]:
        quota[n] += 1
    if quota.min() < 1:
        raise UserError(f"a source's weight is below 1/{total} of the mixture's: leave it out, or raise it")
    return quota.tolist()
