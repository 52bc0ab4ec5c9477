"""BNPO's normalisation, as trl has it: GRPO's advantages, and a mean over the tokens of each micro-batch.

    w = 1 / tokens of the micro-batch, the sum divided by the number of micro-batches

The result depends on ``micro_batch_size``; with one micro-batch a step the weights are ``dapo``'s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cutaway.train.objectives import grpo


@dataclass(frozen=True)
class Config(grpo.Config):
    """The settings of the policy gradient."""

    def weights(self, lengths: np.ndarray, limit: int) -> tuple[np.ndarray, float]:
        return np.full(lengths.shape, 1 / lengths.sum()), 1.0
