"""What a mechanism with a memory of fixed size states about itself, and that memory. Imports no torch.

Such a mechanism folds every token it reads into one matrix a head, S [k v]. The next token costs the same
whether ten or a million came before it, and nothing that was folded in can be taken out again: it can only
fade or be overwritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from cutaway.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.position import rope
    from cutaway.shapes import Float, Int


@dataclass(frozen=True, kw_only=True)
class Recurring:
    """``heads`` matrices of ``key_size`` rows and ``value_size`` columns, ``key_size`` when None.

    A recurrence knows the order of what it read, so most of them take no position.
    """

    reads: ClassVar[Literal["past", "all", "memory"]] = "past"

    heads: int
    key_size: int
    value_size: int | None = None

    def __post_init__(self) -> None:
        if min(self.heads, self.key_size, self.values) < 1:
            raise UserError("attention: heads, key_size and value_size must be 1 or more")

    @property
    def position(self) -> rope.Config | None:
        return None

    @property
    def values(self) -> int:
        """The size of a value."""
        return self.key_size if self.value_size is None else self.value_size

    @property
    def memory(self) -> tuple[int, int, int]:
        """The shape of what is remembered: heads, rows, columns."""
        return self.heads, self.key_size, self.values

    @property
    def tail(self) -> int:
        """How many numbers the short convolution remembers."""
        return 0

    def state(self) -> Recurrent:
        return Recurrent()

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one more token: none."""
        return 0

    def state_bytes(self, entry: int) -> int:
        """Bytes of one sequence's memory in this layer, however long it is, for numbers of ``entry`` bytes.

        The matrices are kept in float32 at least: a sum over a long text needs the room.
        """
        heads, rows, columns = self.memory
        return heads * rows * columns * max(entry, 4) + self.tail * entry


class Recurrent:
    """Named tensors whose size does not depend on how much was read. ``length`` counts entries, padding
    included.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.length = 0

    def get(self, name: str) -> Float[Tensor, "b ..."] | None:
        """What was kept under this name, None before anything was read."""
        return self.tensors.get(name)

    def keep(self, tensors: Mapping[str, Tensor], pos: Int[Tensor, "b t"]) -> None:
        """The tensors as they are after reading these positions take the place of the old ones."""
        import torch

        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors.values()):
            raise UserError(
                "a state does not carry gradients: read with it under torch.no_grad(), train without it"
            )
        self.tensors = dict(tensors)
        self.length += pos.shape[1]

    def can_truncate(self, length: int) -> bool:
        """Whether the state of ``length`` entries ago can be had back: only if that is now, or before the
        first.
        """
        return length >= self.length or length == 0

    def truncate(self, length: int) -> None:
        """Forgets everything after the first ``length`` entries; ``can_truncate`` says whether that is
        possible.
        """
        if length == 0:
            self.tensors, self.length = {}, 0

    def snapshot(self) -> Recurrent:
        """A copy that later appends do not touch. Appending never writes in place: they share tensors."""
        copy = Recurrent()
        copy.tensors, copy.length = dict(self.tensors), self.length
        return copy

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())
