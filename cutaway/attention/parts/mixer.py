"""What a block asks of whatever moves information between tokens. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn


@runtime_checkable
class Memory(Protocol):
    """What one layer remembers of the tokens it has read. ``length`` counts entries, padding included."""

    @property
    def length(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def can_truncate(self, length: int) -> bool:
        """Whether the memory of ``length`` entries ago can be had back."""
        ...

    def truncate(self, length: int) -> None:
        """Forgets everything after the first ``length`` entries."""
        ...

    def snapshot(self) -> Memory:
        """A copy that what is read later does not touch."""
        ...


Remember = Callable[[Memory], Memory]  # from a layer's own memory to one that stores the same in another way


@runtime_checkable
class Mixer(Protocol):
    """A mechanism as data: the ``Config`` of each file in ``attention/``.

    Its module's forward takes (x [b t d], places, rotation or None, in_order, memory or None) and returns
    [b t d].
    ``position`` is None where the mechanism has none of its own.
    """

    @property
    def position(self) -> Any: ...

    def build(self, width: int) -> nn.Module:
        """The torch module whose forward is the mechanism's equation."""
        ...

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        ...

    def state(self) -> Memory:
        """An empty memory, for one batch."""
        ...

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one more token in this layer, for numbers of ``entry`` bytes."""
        ...
