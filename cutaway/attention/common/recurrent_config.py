"""The config of every mixer with a recurrent state: the state's tensors, and their cost. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from cutaway.attention.common.mixer import LayerState
from cutaway.building import Buildable
from cutaway.position import rope


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(Buildable):
    """The next token costs the same whether ten or a million came before it.

    A state is ``state_shape`` numbers, and of a short convolution over ``conv`` tokens the last conv - 1
    values of its ``channels``.
    """

    reads: ClassVar[Literal["past", "all", "memory"]] = "past"
    maps: ClassVar[int] = 1

    @property
    def position(self) -> rope.Config | None:
        """A recurrence knows the order of what it read, so most of them take no position."""
        return None

    @property
    def state_shape(self) -> tuple[int, ...]:
        """The shape of S: heads, rows, columns. Empty where the convolution's tail is all there is."""
        return ()

    @property
    def tail(self) -> int:
        """How many numbers the short convolution keeps; 0 without one."""
        return getattr(self, "channels", 0) * max(getattr(self, "conv", 0) - 1, 0)

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
        numbers = math.prod(self.state_shape) if self.state_shape else 0
        return numbers * max(entry, 4) + self.tail * entry
