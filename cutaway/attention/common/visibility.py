"""Attention masks as values: ``Causal() & Window(256)``.

A backend can match the structure and skip hidden blocks; ``mask`` lowers it to a dense [b t s] boolean, which
is the reference.

A rule has two functions. ``sees(i, j)``: whether the query at position i sees the key at position j. ``may(i,
j)``: whether any query in one span of positions might see any key in another, so that a backend can skip
pairs of spans where none does. ``may`` may err towards True, never towards False. Both broadcast over
tensors, and ``sees`` over numpy arrays.

Positions are absolute; a position of -1 is padding, which sees nothing and is seen by nothing. Imports no
torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from cutaway.shapes import Bool, Int


@dataclass(frozen=True)
class Positions:
    """Tokens' positions ``pos`` Int[b n], and their ``documents`` where several are packed in a row.

    Document -1 is the beginning that all documents of the row share: each of them sees it. ``shared``: keys,
    values and their positions, or an indexer's choice, that a layer hands to later ones in this pass, by the
    layer's number.
    """

    pos: Int[Any, "b n"]
    documents: Int[Any, "b n"] | None = None
    shared: dict[int, Any] | None = None


class Span(NamedTuple):
    """A run of tokens: the lowest and the highest of their positions."""

    low: Int[Any, "..."]
    high: Int[Any, "..."]


class Visibility(ABC):
    """A rule; ``&`` is what both see, ``|`` what either sees."""

    def __and__(self, other: Visibility) -> And:
        return And(self, other)

    def __or__(self, other: Visibility) -> Or:
        return Or(self, other)

    @abstractmethod
    def sees(self, i: Int[Any, "..."], j: Int[Any, "..."]) -> Bool[Any, "..."]:
        """Whether the query at position i sees the key at position j."""

    @abstractmethod
    def may(self, i: Span, j: Span) -> Bool[Any, "..."]:
        """Whether any query in span i might see any key in span j; never wrongly False."""


@dataclass(frozen=True)
class And(Visibility):
    left: Visibility
    right: Visibility

    def sees(self, i: Int[Any, "..."], j: Int[Any, "..."]) -> Bool[Any, "..."]:
        return self.left.sees(i, j) & self.right.sees(i, j)

    def may(self, i: Span, j: Span) -> Bool[Any, "..."]:
        return self.left.may(i, j) & self.right.may(i, j)


@dataclass(frozen=True)
class Or(Visibility):
    left: Visibility
    right: Visibility

    def sees(self, i: Int[Any, "..."], j: Int[Any, "..."]) -> Bool[Any, "..."]:
        return self.left.sees(i, j) | self.right.sees(i, j)

    def may(self, i: Span, j: Span) -> Bool[Any, "..."]:
        return self.left.may(i, j) | self.right.may(i, j)


@dataclass(frozen=True)
class All(Visibility):
    """Every token sees every token: an encoder, and cross-attention."""

    def sees(self, i: Int[Any, "..."], j: Int[Any, "..."]) -> Bool[Any, "..."]:
        return (i == i) & (j == j)

    def may(self, i: Span, j: Span) -> Bool[Any, "..."]:
        return (i.low == i.low) & (j.low == j.low)


@dataclass(frozen=True)
class Causal(Visibility):
    """A token sees itself and earlier tokens."""

    def sees(self, i: Int[Any, "..."], j: Int[Any, "..."]) -> Bool[Any, "..."]:
        return j <= i

    def may(self, i: Span, j: Span) -> Bool[Any, "..."]:
        return j.low <= i.high


@dataclass(frozen=True)
class Window(Visibility):
    """A token sees ``size`` positions up to and including its own: j > i - size."""

    size: int

    def sees(self, i: Int[Any, "..."], j: Int[Any, "..."]) -> Bool[Any, "..."]:
        return j > i - self.size

    def may(self, i: Span, j: Span) -> Bool[Any, "..."]:
        return j.high > i.low - self.size


@dataclass(frozen=True)
class Near(Visibility):
    """A token sees up to ``reach`` positions on either side: |i - j| <= reach."""

    reach: int

    def sees(self, i: Int[Any, "..."], j: Int[Any, "..."]) -> Bool[Any, "..."]:
        return abs(i - j) <= self.reach

    def may(self, i: Span, j: Span) -> Bool[Any, "..."]:
        return (j.high >= i.low - self.reach) & (j.low <= i.high + self.reach)


@dataclass(frozen=True)
class Sink(Visibility):
    """Every token sees the first ``size`` positions (2309.17453)."""

    size: int

    def sees(self, i: Int[Any, "..."], j: Int[Any, "..."]) -> Bool[Any, "..."]:
        return (j < self.size) & (i == i)

    def may(self, i: Span, j: Span) -> Bool[Any, "..."]:
        return (j.low < self.size) & (i.low == i.low)


@dataclass(frozen=True)
class Global(Visibility):
    """The first ``size`` positions see all tokens and are seen by all (2004.05150)."""

    size: int

    def sees(self, i: Int[Any, "..."], j: Int[Any, "..."]) -> Bool[Any, "..."]:
        return (j < self.size) | (i < self.size)

    def may(self, i: Span, j: Span) -> Bool[Any, "..."]:
        return (j.low < self.size) | (i.low < self.size)


@dataclass(frozen=True)
class Chunk(Visibility):
    """A token sees its own chunk of ``size`` positions."""

    size: int

    def sees(self, i: Int[Any, "..."], j: Int[Any, "..."]) -> Bool[Any, "..."]:
        return i // self.size == j // self.size

    def may(self, i: Span, j: Span) -> Bool[Any, "..."]:
        return (i.low // self.size <= j.high // self.size) & (j.low // self.size <= i.high // self.size)


@dataclass(frozen=True)
class Stride(Visibility):
    """A token sees tokens a whole number of strides away (1904.10509)."""

    size: int

    def sees(self, i: Int[Any, "..."], j: Int[Any, "..."]) -> Bool[Any, "..."]:
        return (i - j) % self.size == 0

    def may(self, i: Span, j: Span) -> Bool[Any, "..."]:
        last = (i.high - j.low) // self.size * self.size
        return last >= i.low - j.high


@dataclass(frozen=True)
class Columns(Visibility):
    """Every token sees the last ``summary`` positions of every chunk of ``size`` (1904.10509)."""

    size: int
    summary: int

    def sees(self, i: Int[Any, "..."], j: Int[Any, "..."]) -> Bool[Any, "..."]:
        return (j % self.size >= self.size - self.summary) & (i == i)

    def may(self, i: Span, j: Span) -> Bool[Any, "..."]:
        first = j.low + (self.size - self.summary - j.low % self.size).clamp(min=0)
        return (first <= j.high) & (i.low == i.low)


@dataclass(frozen=True)
class Random(Visibility):
    """Each block of ``size`` queries sees ``count`` earlier blocks, drawn by the ``seed`` (2007.14062).

    A draw is a function of the block's number alone, so that it does not change while a text grows; two draws
    may choose the same block.
    """

    size: int
    count: int
    seed: int

    def sees(self, i: Int[Any, "..."], j: Int[Any, "..."]) -> Bool[Any, "..."]:
        reader, read = i // self.size, j // self.size
        found = read == self._drawn(reader, 0)
        for n in range(1, self.count):
            found = found | (read == self._drawn(reader, n))
        return found

    def may(self, i: Span, j: Span) -> Bool[Any, "..."]:
        first, last = i.low // self.size, i.high // self.size
        found = j.low != j.low
        for step in range(int((last - first).max()) + 1):
            for n in range(self.count):
                block = self._drawn((first + step).minimum(last), n)
                found = found | ((j.low // self.size <= block) & (block <= j.high // self.size))
        return found

    def _drawn(self, block: Int[Any, "..."], n: int) -> Int[Any, "..."]:
        """The n-th block that this one sees: an earlier one, or itself if it is the first."""
        prime = 2**31 - 1  # a product of two numbers below it still fits in 64 bits
        x = (block * 7919 + n * 104_729 + self.seed * 1_299_709 + 1) % prime
        for _ in range(2):
            x = (x * x + 48_271 * x + 11) % prime
        return x % ((block >= 1) * (block - 1) + 1)


def mask(visibility: Visibility, query: Positions, key: Positions) -> Bool[Any, "b t s"]:
    """True where query t sees key s: by the rule, no padding, in the same document or the shared one."""
    i, j = query.pos[:, :, None], key.pos[:, None, :]
    seen = visibility.sees(i, j) & (j >= 0) & (i >= 0)
    if query.documents is None or key.documents is None:
        return seen
    return seen & together(query.documents[:, :, None], key.documents[:, None, :])


def together(query: Int[Any, "..."], key: Int[Any, "..."]) -> Bool[Any, "..."]:
    """Whether a query of one document may see a key of another."""
    return (query == key) | (key < 0)
