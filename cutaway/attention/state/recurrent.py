"""The state of a recurrence: named tensors whose size does not depend on how much was read."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cutaway.attention.state.entries import refuse_gradients
from cutaway.shapes import Float, Int


class Recurrent:
    """What a recurrence carries from token to token. ``length`` counts entries, padding included."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.length = 0

    def get(self, name: str) -> Float[Tensor, "b ..."] | None:
        """The tensor of this name, None before anything was read."""
        return self.tensors.get(name)

    def keep(self, tensors: Mapping[str, Tensor], pos: Int[Tensor, "b t"]) -> None:
        """Replace all tensors by these, as they are after these positions."""
        refuse_gradients(tensors)
        self.tensors = dict(tensors)
        self.length += pos.shape[1]

    def can_truncate(self, length: int) -> bool:
        """Whether the state can return to its first ``length`` entries: only to all of them, or to none."""
        return length >= self.length or length == 0

    def truncate(self, length: int) -> None:
        """Drop everything, if ``length`` is 0; see ``can_truncate``."""
        if length == 0:
            self.tensors, self.length = {}, 0

    def snapshot(self) -> Recurrent:
        """A copy that later tokens do not change. Tensors are replaced, never written into."""
        copy = Recurrent()
        copy.tensors, copy.length = dict(self.tensors), self.length
        return copy

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())
