"""The config that the linear family shares; ``linear_recurrence.py`` is its module. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from cutaway.attention.common.mixer import Shapes, linear
from cutaway.attention.common.recurrent_config import RecurrentConfig
from cutaway.bounds import Count


@dataclass(frozen=True, kw_only=True)
class LinearConfig(RecurrentConfig):
    """``heads`` states of ``key_size`` rows and ``value_size`` columns, ``key_size`` when None.

    Nothing that was written into the state can be taken out again: it can only decay or be overwritten.
    """

    heads: Count
    key_size: Count
    value_size: Count | None = None

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
