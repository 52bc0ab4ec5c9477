"""The config that the linear family shares; ``linear_recurrence.py`` is its module. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from cutaway.attention.common.mixer import LayerState, Shapes, linear
from cutaway.bounds import Count
from cutaway.building import Buildable
from cutaway.position import rope


@dataclass(frozen=True, kw_only=True)
class LinearConfig(Buildable):
    """``heads`` states of ``key_size`` rows and ``value_size`` columns, ``key_size`` when None.

    The next token costs the same whether ten or a million came before it, and nothing that was written into
    the state can be taken out again: it can only decay or be overwritten. A recurrence knows the order of
    what it read, so most of them take no position.
    """

    reads: ClassVar[Literal["past", "all", "memory"]] = "past"

    heads: Count
    key_size: Count
    value_size: Count | None = None

    @property
    def position(self) -> rope.Config | None:
        return None

    @property
    def values(self) -> int:
        """The size of a value."""
        return self.key_size if self.value_size is None else self.value_size

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """The shape of S: heads, rows, columns."""
        return self.heads, self.key_size, self.values

    @property
    def channels(self) -> int:
        """How many numbers of a token a short convolution reads: its queries, keys and values."""
        return 2 * getattr(self, "groups", self.heads) * self.key_size + self.heads * self.values

    @property
    def tail(self) -> int:
        """How many numbers the short convolution keeps; 0 without one."""
        return self.channels * max(getattr(self, "conv", 0) - 1, 0)

    def weights(self, width: int) -> Shapes:
        """The shape of each weight by its name: of the matrices that all of them have."""
        keys, values = getattr(self, "groups", self.heads) * self.key_size, self.heads * self.values
        bias, out_bias = self.biased
        shapes = linear("query", keys, width, bias) | linear("key", keys, width, bias)
        return shapes | linear("value", values, width, bias) | linear("out", width, values, out_bias)

    @property
    def biased(self) -> tuple[bool, bool]:
        """Whether query, key and value have biases, and whether the output has."""
        return False, False

    def state(self) -> LayerState:
        from cutaway.attention.state.recurrent import Recurrent

        return Recurrent()

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one more token: none."""
        return 0

    def state_bytes(self, entry: int) -> int:
        """Bytes of one sequence's state in this layer, however long it is, for numbers of ``entry`` bytes.

        S is kept in float32 at least: a sum over a long text needs the room.
        """
        heads, rows, columns = self.state_shape
        return heads * rows * columns * max(entry, 4) + self.tail * entry
