"""The protocols of token mixers and of their states, as a block uses them. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable


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


Shapes = dict[str, tuple[int, ...]]  # of weights, by name
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

    def build(self, width: int) -> Any:
        """The ``torch.nn.Module`` whose forward is the mechanism's equation."""
        ...

    def weights(self, width: int) -> Shapes:
        """The shape of each weight by its name."""
        ...

    def state(self) -> LayerState:
        """An empty state, for one batch."""
        ...

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one more token in this layer, for numbers of ``entry`` bytes."""
        ...


def linear(name: str, outputs: int, inputs: int, bias: bool = False) -> Shapes:
    """The shapes of a matrix and its bias, if it has one, by name."""
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def under(name: str, shapes: Shapes) -> Shapes:
    """The shapes of a part's weights, by their names in the whole."""
    return {f"{name}.{part}": shape for part, shape in shapes.items()}
