"""Rotary position (2104.09864): each pair of a query or key is turned by an angle that grows with its position.

The score of a query at m and a key at n then depends on m - n alone: R(m)q . R(n)k = q . R(n - m)k. Pair i of a head of
size k turns by base^(-2i/k) radians a token; the pair is dimensions (i, i + k/2), the half-split layout.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cutaway.position.scaling import Scaling

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.shapes import Float, Int


class Rotation(NamedTuple):
    """By how far each pair of each position is turned."""

    cos: Float[Tensor, "b 1 t r"]
    sin: Float[Tensor, "b 1 t r"]


@dataclass(frozen=True)
class Config:
    """``size``: how many leading dimensions of the head are turned; the others pass unchanged."""

    size: int
    base: float = 10000.0
    scaling: Scaling | None = field(default=None, metadata={"variants": "cutaway.position.scaling"})

    def frequencies(self) -> np.ndarray:
        """Radians a token for each pair, float64 [size / 2]."""
        plain = self.base ** (-np.arange(0, self.size, 2, dtype=np.float64) / self.size)
        return plain if self.scaling is None else self.scaling.stretch(plain)


def rotation(frequencies: tuple[float, ...], pos: Int[Tensor, "b t"]) -> Rotation:
    """Cosine and sine of every angle. Angles are float64: in float32 they are off by 1e-4 at position 4,000."""
    import torch

    radians = torch.tensor(frequencies, dtype=torch.float64, device=pos.device)
    angles = pos[:, None, :, None].to(torch.float64) * radians
    return Rotation(angles.cos(), angles.sin())


def rotate(x: Float[Tensor, "b h t k"], rotation: Rotation) -> Float[Tensor, "b h t k"]:
    """Turns each pair (i, i + size/2) of x by its angle."""
    import torch

    cos, sin = (part.to(x.dtype) for part in rotation)
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
