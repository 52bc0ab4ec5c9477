"""DAPO (2503.14476): GRPO's advantages, one weight for every token of a step, a clip that is wider above.

    w = 1, the sum divided by the number of tokens of the whole step; clip_high 0.28

A long completion's tokens then count as much as a short one's. ``data.resample`` is its dynamic sampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.bounds import NonNegative
from cutaway.train.objectives import grpo


@dataclass(frozen=True)
class Config(grpo.Config):
    """The settings of the policy gradient."""

    clip_high: NonNegative = 0.28

    def weights(self, lengths: np.ndarray, limit: int) -> tuple[np.ndarray, float]:
        return np.ones(lengths.shape), float(lengths.sum())
