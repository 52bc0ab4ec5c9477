"""A look inside a forward pass that does not touch it: residual residuals and attention weights.

The attention weights of a token are computed a second time, for its layer alone, by the backend that holds
them in memory: the first pass stays the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from cutaway.attention.common.mixer import LayerState
from cutaway.attention.state.caches import Ring
from cutaway.hooks import hooked, tracing
from cutaway.model.decoder import Decoder, State

Spot = tuple[int, int]  # the index of an id that is read, and a layer


class Found:
    """What was seen during the forward pass of one chunk of one text."""

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self.residuals: dict[int, Tensor] = {}
        self.inputs: dict[int, tuple[Any, ...]] = {}
        self.memories: dict[int, LayerState] = {}

    def lens(self, at: int, layer: int) -> np.ndarray:
        """float32 [v]: the logits of the residual stream after a layer."""
        return self._model.logits(self.residuals[layer][:, at : at + 1])[0, 0].float().cpu().numpy()

    def pattern(self, at: int, layer: int) -> np.ndarray:
        """float32 [h s]: the weights of a token over its text, those that a window hides 0."""
        attention: Any = self._model.blocks[layer].attention
        before = self.memories[layer].snapshot()
        length = before.length + at + 1
        keys = None
        if isinstance(before, Ring) and before.positions.numel():
            keys = before.positions[0].tolist()
        *rest, _ = self.inputs[layer]
        with tracing(attention, "pattern") as seen:
            attention(*rest, before)
        pattern = seen["pattern"][0, :, at].float().cpu().numpy()
        if keys is None:
            return pattern[:, :length].copy()
        whole = np.zeros((len(pattern), length), np.float32)
        whole[:, keys] = pattern[:, : len(keys)]
        whole[:, length - at - 1 :] = pattern[:, len(keys) : len(keys) + at + 1]
        return whole


@contextmanager
def watching(model: Decoder, lens: Iterable[Spot], looks: Iterable[Spot], state: State) -> Iterator[Found]:
    """Keeps what these spots need during this thread's forward pass into the state."""
    found = Found(model)
    blocks: Any = model.blocks
    hooks: list[Any] = []
    for layer in {layer for _, layer in lens if layer + 1 < len(blocks)}:
        hooks.append((blocks[layer], None, _keep_residual(found.residuals, layer)))
    for layer in {layer for _, layer in looks}:
        found.memories[layer] = state.blocks[layer].snapshot()
        hooks.append((blocks[layer].attention, _keep_inputs(found.inputs, layer), None))
    with hooked(hooks):
        yield found


def _keep_residual(kept: dict[int, Tensor], layer: int) -> Any:
    def keep(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Any]) -> None:
        kept[layer], _ = output

    return keep


def _keep_inputs(kept: dict[int, tuple[Any, ...]], layer: int) -> Any:
    def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept[layer] = inputs

    return keep
