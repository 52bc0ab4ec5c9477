"""ALiBi, attention with linear biases (2108.12409): distance lowers the score of a query and a key.

    score[i j] += -slope_h |i - j|        slope_h = 2^(-8 h / heads) for h = 1 ... heads

Steep heads read what is near, flat ones the whole text, and a text longer than any in training is only more
of the same. Where the number of heads is not a power of two the slopes are those of the next lower one,
then every other of the next higher (Bloom, MPT).
"""

from __future__ import annotations

from dataclasses import dataclass

from cutaway.building import Buildable


@dataclass(frozen=True)
class Config(Buildable):
    """Nothing to choose."""

    module = "cutaway.position.bias:Alibi"

    def slopes(self, heads: int) -> list[float]:
        """The slope of each head."""
        power = 1 << (heads.bit_length() - 1)
        slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
        between = [2 ** (-8 * (h + 1) / (2 * power)) for h in range(0, 2 * power, 2)]
        return slopes + between[: heads - power]

    def weights(self, heads: int) -> dict[str, tuple[int, ...]]:
        """None."""
        return {}
