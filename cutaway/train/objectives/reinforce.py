"""REINFORCE (Williams, 1992) with the mean reward of the step's other completions as its baseline.

    A_i = r_i - mean of all the others' of the step

Unlike ``rloo`` it compares completions of different prompts, so that one completion a prompt is enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.train.objectives import rloo


@dataclass(frozen=True)
class Config(rloo.Config):
    """As RLOO's."""

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        return rloo.leave_one_out(rewards.ravel()).reshape(rewards.shape)
