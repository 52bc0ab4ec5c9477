"""What a block expects of a token mixer: the protocols of mechanisms and their states. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn


@runtime_checkable
class LayerState(Protocol):
    """One layer's KV cache or recurrent state. ``length`` counts entries, padding included."""

    @property
    def length(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def can_truncate(self, length: int) -> bool:
        """Whether the state can return to its first ``length`` entries."""
        ...

    def truncate(self, length: int) -> None:
        """Drop everything after the first ``length`` entries."""
        ...

    def snapshot(self) -> LayerState:
        """A copy that later tokens do not change."""
        ...


Wrap = Callable[[LayerState], LayerState]  # a layer's own state to one that stores the same in another way


@runtime_checkable
class Mixer(Protocol):
    """A mechanism as data: the ``Config`` of each file in ``attention/``.

    Its module's forward takes (x [b t d], positions, rotation or None, in_order, state or None) and returns
    [b t d]. ``position`` is None where the mechanism has none of its own.
    """

    @property
    def reads(self) -> str:
        """``past``, ``all`` of its own text, or the ``memory`` of another."""
        ...

    @property
    def position(self) -> Any: ...

    def build(self, width: int) -> nn.Module:
        """The torch module whose forward is the mechanism's equation."""
        ...

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        ...

    def state(self) -> LayerState:
        """An empty state, for one batch."""
        ...

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one more token in this layer, for numbers of ``entry`` bytes."""
        ...


def weight_shapes(config: Any, *sizes: int) -> dict[str, tuple[int, ...]]:
    """The shape of each weight of a config's module, read from a build that allocates nothing."""
    return dict(_weight_shapes(config, sizes))


@cache
def _weight_shapes(config: Any, sizes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    from cutaway.layers.meta import on_meta

    with on_meta():
        module = config.build(*sizes)
    return {name: tuple(weight.shape) for name, weight in module.named_parameters()}
