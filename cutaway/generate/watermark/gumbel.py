"""The Gumbel trick (Aaronson 2022; Kuditipudi et al., 2307.15593): the key makes the draw itself.

    id      =  argmax over ids of  u(id)^(1 / p(id))  =  argmax of  log p(id) - log(-log u(id))
    score   =  -log(1 - u(id)),  which is exponential under the null, so that T of them sum to Gamma(T, 1)

Over random keys each token has its own probability p: the text of one key is the model's. The price: a
prompt has one answer for each key, whatever the seed, but where a context repeats itself.
"""

import math
from dataclasses import dataclass

import numpy as np

from cutaway.generate.watermark.scheme import Watermark, uniform


@dataclass(frozen=True)
class Config(Watermark):
    """It has no settings but the key."""

    def shape(self, logits: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        chosen = int((logits - np.log(-np.log(uniform(hashes)))).argmax())
        return np.where(np.arange(len(logits)) == chosen, logits, np.float32(-np.inf))

    def scores(self, hashes: np.ndarray) -> np.ndarray:
        return -np.log1p(-uniform(hashes))

    @property
    def null(self) -> tuple[float, float]:
        return 1.0, 1.0

    def tail(self, total: float, tokens: int) -> float:
        if total <= 0:
            return 1.0
        terms = (k * math.log(total) - total - math.lgamma(k + 1) for k in range(tokens))
        return min(1.0, math.fsum(map(math.exp, terms)))  # of a Poisson process: fewer than T events by total
