"""Expert iteration (1705.08439; for text 2203.14465): sample, keep what the task verifies, imitate it.

    loss = mean over the completions that are right of their mean -log pi

Each step is one round: it samples from the model as it is, and takes one next-token step on what was kept.
The plain baseline of learning from rewards: wrong answers teach nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from cutaway.bounds import Positive
from cutaway.data.tasks import RIGHT
from cutaway.train.objectives import grpo


@dataclass(frozen=True)
class Config(grpo.Config):
    """The policy gradient's settings: an advantage of 1 for what is kept, no correction for the sampler."""

    compares: ClassVar[bool] = False
    importance_cap: Positive | None = None

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        kept = rewards >= RIGHT
        return kept * (kept.size / max(1, kept.sum()))
