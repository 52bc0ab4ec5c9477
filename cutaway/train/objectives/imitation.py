"""Supervised fine-tuning on a task's own answers: nothing is sampled, and the form of answers is learned.

    loss = mean over the questions of the mean -log pi of the answer's tokens and the end token

It comes before learning from rewards: a model that is never right has no reward to learn from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cutaway.train.objectives import expert_iteration


@dataclass(frozen=True)
class Config(expert_iteration.Config):
    """The settings of expert iteration; completions are the task's answers."""

    sampled: ClassVar[bool] = False

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        return np.ones(rewards.shape)

    def report(self, sums: dict[str, float], weight: float) -> dict[str, float]:
        """The loss is shown as the cross-entropy a token."""
        return {"loss": sums["entropy"] / max(sums["tokens"], 1)}
