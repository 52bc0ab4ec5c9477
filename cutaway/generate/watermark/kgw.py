"""Green lists (Kirchenbauer, Geiping et al., 2301.10226): a random part of the vocabulary is made likelier.

    green(id)   <=>  u(id) < gamma                       with u the hash as a number in (0, 1)
    logits'     =  logits + delta green
    z           =  (G - gamma T) / sqrt(T gamma (1 - gamma))      G of T tokens are green

The text's distribution changes: the larger delta, the easier to detect and the further from the model. Its
tail is the binomial's.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cutaway.errors import UserError
from cutaway.generate.watermark.scheme import Watermark, uniform


@dataclass(frozen=True)
class Config(Watermark):
    """``gamma`` of the vocabulary is green, and has ``delta`` added to its logits."""

    gamma: float = 0.25
    delta: float = 2.0
    greedy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma < 1:
            raise UserError(f"gamma is {self.gamma}: the green part of the vocabulary is between 0 and 1")

    def shape(self, logits: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        return logits + np.float32(self.delta) * (uniform(hashes) < self.gamma)

    def scores(self, hashes: np.ndarray) -> np.ndarray:
        return (uniform(hashes) < self.gamma).astype(np.float64)

    @property
    def null(self) -> tuple[float, float]:
        return self.gamma, self.gamma * (1 - self.gamma)

    def tail(self, total: float, tokens: int) -> float:
        own, other = math.log(self.gamma), math.log1p(-self.gamma)
        terms = (
            math.lgamma(tokens + 1)
            - math.lgamma(k + 1)
            - math.lgamma(tokens - k + 1)
            + k * own
            + (tokens - k) * other
            for k in range(round(total), tokens + 1)
        )
        return min(1.0, math.fsum(map(math.exp, terms)))
