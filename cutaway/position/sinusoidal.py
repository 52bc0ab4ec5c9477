"""Sinusoidal positions (1706.03762): a vector of sines and cosines is added to the token's embedding.

    p[2i] = sin(pos / base^(2i/d))        p[2i + 1] = cos(pos / base^(2i/d))

Nothing is learned, so no position is out of range. Some models (Marian) put all sines first, then all
cosines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cutaway.bounds import Bounded, Natural, Positive
from cutaway.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Config(Bounded):
    """``interleaved``: sine and cosine alternate, as in the paper; else the sines are in the first half.

    ``offset`` is the number of the first position (2 in XGLM).
    """

    base: Positive = 10000.0
    interleaved: bool = True
    offset: Natural = 0

    def build(self, width: int) -> nn.Module:
        from torch import Tensor, arange, float64, get_default_dtype, nn, stack

        if width % 2:
            raise UserError(f"position.width is {width}; it must be even: sines and cosines come in pairs")
        config = self

        class Sinusoids(nn.Module):
            """Positions Int[b t] to their vectors [b t d]; angles are float64."""

            def forward(self, pos: Tensor) -> Tensor:
                pairs = arange(0, width, 2, dtype=float64, device=pos.device)
                angles = pos[..., None].to(float64) * config.base ** (-pairs / width)
                halves = stack((angles.sin(), angles.cos()), dim=-1 if config.interleaved else -2)
                return halves.flatten(-2).to(get_default_dtype())

        return Sinusoids()

    def vectors(self, positions: np.ndarray, width: int) -> np.ndarray:
        """The vectors of these positions, without PyTorch: float32 [t width]."""
        angles = positions[:, None].astype(np.float64) * self.base ** (-np.arange(0, width, 2) / width)
        halves = np.stack((np.sin(angles), np.cos(angles)), axis=-1 if self.interleaved else -2)
        return halves.reshape(len(positions), width).astype(np.float32)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """None."""
        return {}
