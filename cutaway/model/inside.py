"""A look inside a forward pass that does not touch it: residual streams and attention weights.

The attention weights of a token are computed a second time, for its layer alone, by the backend that holds
them in memory: the first pass stays the same to the bit. Where a pass is edited they are its own instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from torch import Tensor, nn

from cutaway.attention.common.mixer import LayerState
from cutaway.attention.state.caches import Ring
from cutaway.hooks import hooked, tracing
from cutaway.model.decoder import Decoder, State

Spot = tuple[int, ...]  # the index of an id that is read, a layer, and for the pass's own: weights or scores
OWN = ("pattern", "scores")


class Found:
    """What was seen during the forward pass of one chunk of one text."""

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self.residuals: dict[int, Tensor] = {}
        self.inputs: dict[int, tuple[Any, ...]] = {}
        self.memories: dict[int, LayerState] = {}
        self.values: dict[str, Tensor] = {}  # of the pass itself, by name

    def rows(self, name: str, count: int) -> np.ndarray:
        """float32 [n ...]: a value of each of the ``count`` ids, heads first."""
        value = self.values[name][0][..., -count:, :].float().cpu().numpy()
        return value if value.ndim == 2 else value.swapaxes(0, 1)

    def lens(self, at: int, layer: int) -> np.ndarray:
        """float32 [v]: the logits of the residual stream after a layer."""
        return self._model.logits(self.residuals[layer][:, at : at + 1])[0, 0].float().cpu().numpy()

    def pattern(self, at: int, layer: int, own: int | None = None) -> np.ndarray:
        """float32 [h s]: the weights of a token over its text, those that a window hides 0; ``own``: those
        (0), or the scores (1), of the pass itself.
        """
        attention: Any = self._model.blocks[layer].attention
        before = self.memories[layer].snapshot()
        length = before.length + at + 1
        keys = None
        if isinstance(before, Ring) and before.positions.numel():
            keys = before.positions[0].tolist()
        if own is None:
            *rest, _ = self.inputs[layer]
            with tracing(attention, "pattern") as seen:
                attention(*rest, before)
            found = seen["pattern"]
        else:
            found = self.values[f"blocks.{layer}.attention.{OWN[own]}"]
        pattern = found[0, :, at].float().cpu().numpy()
        if keys is None:
            return pattern[:, :length].copy()
        whole = np.zeros((len(pattern), length), np.float32)
        whole[:, keys] = pattern[:, : len(keys)]
        whole[:, length - at - 1 :] = pattern[:, len(keys) : len(keys) + at + 1]
        return whole


@contextmanager
def watching(
    model: Decoder, lens: Iterable[Spot], looks: Iterable[Spot], state: State, names: Iterable[str] = ()
) -> Iterator[Found]:
    """Keeps what these spots need, and values by name, during this thread's forward pass into the state."""
    found = Found(model)
    blocks: Any = model.blocks
    hooks: list[Any] = []
    for layer in {layer for _, layer in lens if layer + 1 < len(blocks)}:
        hooks.append((blocks[layer], None, _keep_residual(found.residuals, layer)))
    looks = list(looks)
    kept = {*names, *(f"blocks.{layer}.attention.{OWN[own[0]]}" for _, layer, *own in looks if own)}
    for layer in {layer for _, layer, *_ in looks}:
        found.memories[layer] = state.blocks[layer].snapshot()
        hooks.append((blocks[layer].attention, _keep_inputs(found.inputs, layer), None))
    with hooked(hooks), tracing(model, *kept) if kept else nullcontext({}) as found.values:
        yield found


def _keep_residual(kept: dict[int, Tensor], layer: int) -> Any:
    def keep(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Any]) -> None:
        kept[layer], _ = output

    return keep


def _keep_inputs(kept: dict[int, tuple[Any, ...]], layer: int) -> Any:
    def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        kept[layer] = inputs

    return keep
