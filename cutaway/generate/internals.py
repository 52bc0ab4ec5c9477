"""A model's internals while it generates: attention weights in short, and the logit lens or another.

For each layer of a request's internals, at the position from which a token was chosen: each head's attention
as its entropy and its largest weights, and the logit lens (nostalgebraist 2020), the next-token distribution
from this layer's residual stream, as its top tokens and its entropy. Entropies are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cutaway.errors import UserError
from cutaway.generate.sample import largest

POSITIONS = 4  # positions listed of each head
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Internals:
    """Which layers, from 0, and what of them: ``attention``, and ``lens``, how many top tokens (0: none).

    ``through``: another lens than the logit lens, by which layers and their residual streams [l d] become
    logits, one float32 [v] a layer.
    """

    layers: tuple[int, ...]
    attention: bool = True
    lens: int = 5
    through: Callable[[Sequence[int], np.ndarray], Sequence[np.ndarray]] | None = None

    def check(self, layers: int, vocab: int) -> None:
        """UserError for layers and tokens that the model does not have."""
        object.__setattr__(self, "layers", tuple(self.layers))
        for layer in self.layers:
            if not 0 <= layer < layers:
                raise UserError(f"internals name the layer {layer}: the model's go from 0 to {layers - 1}")
        if not 0 <= self.lens <= vocab:
            raise UserError(f"internals ask for {self.lens} tokens of the lens: the model has {vocab} tokens")
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise UserError("internals must name at least one layer, each of them once")


@dataclass(frozen=True)
class HeadInternals:
    """One head's attention: the entropy of its weights, and (position, weight) of the largest."""

    entropy: float
    positions: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class LayerInternals:
    """One layer at one token: ``lens`` are (id, probability), likeliest first, with their entropy."""

    layer: int
    heads: tuple[HeadInternals, ...]
    lens: tuple[tuple[int, float], ...]
    entropy: float | None


def summarize(layer: int, pattern: np.ndarray | None, logits: np.ndarray | None, lens: int) -> LayerInternals:
    """Attention weights float32 [h s] and the lens's logits float32 [v], summarized."""
    heads = () if pattern is None else _heads(pattern)
    if logits is None:
        return LayerInternals(layer, heads, (), None)
    shifted = np.subtract(logits, logits.max())
    if shifted.min() == -np.inf:
        np.maximum(shifted, np.float32(-1e4), out=shifted)  # e^-1e4 is 0, and 0 times it too
    weights = np.exp(shifted)
    total = float(weights.sum())  # pairwise: float32 is enough
    best = largest(logits, lens)[:lens]
    entropy = math.log(total) - float(weights @ shifted) / total
    return LayerInternals(layer, heads, tuple((int(id), float(weights[id]) / total) for id in best), entropy)


def _heads(pattern: np.ndarray) -> tuple[HeadInternals, ...]:
    """Each head's entropy and largest weights, earlier positions first among equal ones."""
    count = min(POSITIONS, pattern.shape[1])
    some = np.sort(np.argpartition(pattern, -count, axis=1)[:, -count:], axis=1)
    weights = np.take_along_axis(pattern, some, axis=1)
    order = np.argsort(-weights, axis=1, kind="stable")
    positions = np.take_along_axis(some, order, axis=1).tolist()
    weights = np.take_along_axis(weights, order, axis=1).tolist()
    logs = np.log(np.maximum(pattern, TINY))  # 0 times it is 0
    entropies = (-np.einsum("hs,hs->h", pattern, logs)).tolist()
    rows = zip(entropies, positions, weights, strict=True)
    return tuple(HeadInternals(entropy, tuple(zip(*places, strict=True))) for entropy, *places in rows)
