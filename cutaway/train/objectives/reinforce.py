"""REINFORCE (Williams, 1992) with the mean reward of the step's other completions as its baseline.

    A_i = r_i - mean of all the others' of the step

Unlike ``rloo`` it compares completions of different prompts, so that one completion a prompt is enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.train.objectives import rloo
from cutaway.train.objectives.common.policy_gradient import leave_one_out


@dataclass(frozen=True)
class Config(rloo.Config):
    """The settings of RLOO."""

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        return leave_one_out(rewards.ravel()).reshape(rewards.shape)

    def kl_advantages(self, k1: np.ndarray) -> np.ndarray:
        return super().kl_advantages(k1.ravel()).reshape(k1.shape)
