"""On-policy distillation (GKD, lambda = 1; 2306.13649): a teacher's distribution on the student's texts.

    loss = the divergence of ``distill``, its mean over the tokens of completions that the student sampled

The student sees its own mistakes, and what the teacher would have done there. The completions are a task's,
as those of ``grpo``, but their rewards are only logged. They are sampled at ``temperature`` too, and no
gradient passes through the sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cutaway.train.objectives import distill
from cutaway.train.objectives.common.objective import Source


@dataclass(frozen=True)
class Config(distill.Config):
    """The settings of distillation."""

    source: ClassVar[Source] = "task"
    sampled: ClassVar[bool] = True
    compares: ClassVar[bool] = False
    kl_coefficient: ClassVar[float] = 0.0

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        """No reward is read."""
        return np.zeros(rewards.shape)

    def weights(self, lengths: np.ndarray, limit: int) -> tuple[np.ndarray, float]:
        """The weights of the policy gradient: every token counts the same."""
        return np.ones(lengths.shape), float(lengths.sum())
