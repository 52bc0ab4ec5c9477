"""Tournament sampling (SynthID-Text: Dathathri et al., Nature 634, 2024), in its non-distortionary form.

Each bit l of the hash is a layer: g_l(id) in {0, 1}. A tournament between two draws, won by the larger g,
and drawn where they tie, makes of the probabilities p

    p'(id)  =  p(id) (1 + g_l(id) - sum over all ids of p g_l)          layer after layer

Over random keys each p' averages to p. The score weighs early layers, which change most, from 10 down to 1.
"""

import math
from dataclasses import dataclass

import numpy as np

from cutaway.errors import UserError
from cutaway.generate.watermark.scheme import Watermark, normal_tail


@dataclass(frozen=True)
class Config(Watermark):
    """``layers`` of the tournament, 64 at most."""

    layers: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.layers <= 64:
            raise UserError(f"layers is {self.layers}: a hash has from 1 to 64 bits to play for")

    def shape(self, logits: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        kept = np.flatnonzero(logits > -np.inf)
        p = np.exp(np.subtract(logits[kept], logits.max(), dtype=np.float64))
        p /= p.sum()
        for layer in range(self.layers):
            g = self._bit(hashes[kept], layer)
            p *= np.maximum(1 + g - p @ g, 0)  # which rounding may put just below
        marked = np.full_like(logits, -np.inf)
        with np.errstate(divide="ignore"):
            marked[kept] = np.log(p)
        return marked

    def scores(self, hashes: np.ndarray) -> np.ndarray:
        bits = np.stack([self._bit(hashes, layer) for layer in range(self.layers)], -1)
        return bits @ self._weights

    @property
    def null(self) -> tuple[float, float]:
        return 0.5, float((self._weights**2).sum()) / 4

    def tail(self, total: float, tokens: int) -> float:
        return normal_tail((total - tokens / 2) / math.sqrt(tokens * self.null[1]))

    @property
    def _weights(self) -> np.ndarray:
        weights = np.linspace(10, 1, self.layers)
        return weights / weights.sum()

    @staticmethod
    def _bit(hashes: np.ndarray, layer: int) -> np.ndarray:
        return (hashes >> np.uint64(layer) & np.uint64(1)).astype(np.float64)
