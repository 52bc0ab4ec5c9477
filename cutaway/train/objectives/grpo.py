"""GRPO (2402.03300): a completion's reward, compared with those of the same prompt's other completions.

    A_i = (r_i - mean(r)) / (std(r) + 1e-4)      std with Bessel's correction, over the prompt's completions
    A_i = 0 where the rewards differ by no more than rounding
    w = 1 / length of the completion, the sum divided by the number of completions: a mean of means

The loss: ``common/policy_gradient.py``. ``dr_grpo``, ``dapo`` and ``bnpo`` correct what
short completions and even groups gain by these divisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.train.objectives.common.policy_gradient import PolicyGradient, centred


@dataclass(frozen=True)
class Config(PolicyGradient):
    """The settings of the policy gradient."""

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        return centred(rewards) / (rewards.std(-1, ddof=1, keepdims=True) + 1e-4)

    def weights(self, lengths: np.ndarray, limit: int) -> tuple[np.ndarray, float]:
        return 1 / lengths, lengths.size
