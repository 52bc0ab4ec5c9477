"""Dr. GRPO (2503.20783): GRPO without the two divisions that bias it.

    A_i = r_i - mean(r)      w = 1, the sum divided by (number of completions) (most tokens of a completion)

The standard deviation weighs easy and hard prompts most; a division by the length favours long wrong answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.train.objectives.common.policy_gradient import PolicyGradient, centred


@dataclass(frozen=True)
class Config(PolicyGradient):
    """The settings of the policy gradient."""

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        return centred(rewards)

    def weights(self, lengths: np.ndarray, limit: int) -> tuple[np.ndarray, float]:
        return np.ones(lengths.shape), lengths.size * limit
