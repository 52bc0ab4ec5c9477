"""Rotary position embedding (RoPE, 2104.09864): pairs rotate by an angle that grows with position.

The score of a query at m and a key at n then depends on m - n alone: R(m)q . R(n)k = q . R(n - m)k. Pair i of
a head of size k rotates by base^(-2i/k) radians a token. In the half-split layout the pair is dimensions (i,
i + k/2), in the interleaved one (2i, 2i + 1); a fixed permutation of the rows of W_q and W_k makes one the
other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cutaway.bounds import Bounded, Count, Positive
from cutaway.errors import UserError
from cutaway.position.scaling import GROWING, Scaling, YaRN

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.shapes import Float, Int


@dataclass(frozen=True)
class Config(Bounded):
    """``size``: how many leading dimensions of the head are rotated; the others pass unchanged.

    With ``copies`` the same frequencies come so many times, for keys of several heads side by side.
    """

    size: Count
    base: Positive = 10000.0
    scaling: Scaling | None = field(default=None, metadata={"variants": "cutaway.position.scaling"})
    interleaved: bool = False
    copies: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % (2 * self.copies):
            raise UserError(
                f"position.size is {self.size}; it must be a multiple of {2 * self.copies}: dimensions "
                "rotate in pairs"
            )
        if self.copies > 1 and self.grows:
            raise UserError("position.copies: no scaling that changes with the text's length has them")
        pairs = self.size // self.copies // 2
        if isinstance(self.scaling, YaRN) and pairs < 2:
            raise UserError("position.scaling: YaRN blends frequencies, of which one pair has one")
        for name in ("divisors", "short", "long"):
            listed = getattr(self.scaling, name, None)
            if listed is not None and len(listed) != pairs:
                raise UserError(
                    f"position.scaling.{name} lists {len(listed)} divisors, but {pairs} pairs rotate"
                )

    @property
    def grows(self) -> bool:
        """Whether the frequencies change as the text grows, so that cached keys rotate anew."""
        return isinstance(self.scaling, GROWING)

    @property
    def magnitude(self) -> float:
        """The factor of cosine and sine."""
        return 1.0 if self.scaling is None else self.scaling.magnitude

    def frequencies(self, length: int = 0) -> np.ndarray:
        """Radians a token for each pair, float64 [size / 2], in a text of this length."""
        size = self.size // self.copies
        plain = self.base ** (-np.arange(0, size, 2, dtype=np.float64) / size)
        if isinstance(self.scaling, GROWING):
            return self.scaling.at(plain, length)
        return np.tile(plain if self.scaling is None else self.scaling.stretch(plain), self.copies)

    def agreement(self, distances: np.ndarray, length: int = 0) -> np.ndarray:
        """The score at each distance of two vectors whose numbers are all equal, 1 at distance 0.

        It is the mean over pairs of the cosine of their angle; ``length`` as in ``frequencies``.
        """
        return np.cos(np.multiply.outer(distances, self.frequencies(length))).mean(-1)


class Rotation(NamedTuple):
    """Cosine and sine of the angle of each pair at each position; ``radians``: the frequencies."""

    cos: Float[Tensor, "b 1 t r"]
    sin: Float[Tensor, "b 1 t r"]
    radians: Float[Tensor, "r"]
    magnitude: float
    interleaved: bool

    def at(self, pos: Int[Tensor, "b s"]) -> Rotation:
        """The same frequencies at other positions. Angles are float64: float32 is off by 1e-4 at 4,000."""
        angles = pos[:, None, :, None].to(self.radians.dtype) * self.radians
        cos, sin = angles.cos() * self.magnitude, angles.sin() * self.magnitude
        return self._replace(cos=cos, sin=sin)


class RotaryEmbedding:
    """A config with its frequencies computed once, as plain floats."""

    def __init__(self, config: Config) -> None:
        self.config = config
        unscaled = Config(config.size, config.base) if config.grows else config
        self.radians = tuple(unscaled.frequencies().tolist())

    def rotation(self, pos: Int[Tensor, "b t"]) -> Rotation:
        """The rotation at these positions, in a text that ends with the last of them."""
        import torch

        radians = torch.tensor(self.radians, dtype=torch.float64, device=pos.device)
        if isinstance(self.config.scaling, GROWING):
            radians = self.config.scaling.at(radians, pos.max() + 1)
        return Rotation(radians, radians, radians, self.config.magnitude, self.config.interleaved).at(pos)


def rotate(x: Float[Tensor, "b h t k"], rotation: Rotation) -> Float[Tensor, "b h t k"]:
    """Rotates each pair of x by its angle."""
    import torch

    cos, sin = rotation.cos.to(x.dtype), rotation.sin.to(x.dtype)
    half = cos.shape[-1]
    pairs, rest = x[..., : 2 * half], x[..., 2 * half :]
    if rotation.interleaved:
        first, second = pairs[..., 0::2], pairs[..., 1::2]
        rotated = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return torch.cat((rotated.flatten(-2), rest), dim=-1)
    first, second = pairs[..., :half], pairs[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
