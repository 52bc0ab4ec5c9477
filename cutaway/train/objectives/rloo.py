"""RLOO (2402.14740): REINFORCE whose baseline is the mean reward of the same prompt's other completions.

A_i = r_i - mean of the others' = G / (G - 1) (r_i - mean(r))
w = 1, the sum divided by the number of completions: the gradient of a completion's whole log-probability
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from cutaway.train.objectives.common.policy_gradient import PolicyGradient, leave_one_out


@dataclass(frozen=True)
class Config(PolicyGradient):
    """The policy gradient's settings. KL is in the reward, and so in the advantage: neither is divided."""

    kl_estimator: Literal["k1", "k2", "k3"] = "k1"

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        return leave_one_out(rewards)

    def weights(self, lengths: np.ndarray, limit: int) -> tuple[np.ndarray, float]:
        return np.ones(lengths.shape), lengths.size
