"""Dynamic fine-tuning (2508.05629): each token's cross-entropy times its own probability.

    loss = mean over trained tokens of -stop_gradient(p(target)) log p(target)

Cross-entropy's gradient weighs a token by 1 / p as reinforcement learning's does not: unlikely ones rule it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.train.objectives.common.objective import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.train.trainable import Trainable, TrainingBatch


@dataclass(frozen=True)
class Config(Objective):
    """The settings of ``next_token``, without its other terms."""

    def loss(self, trainable: Trainable, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of a micro-batch's losses, and that of cross-entropies."""
        log_probs = trainable.log_probs(batch, self.chunk_size)
        weights = 1 if batch.loss_weights is None else batch.loss_weights
        losses = -log_probs.detach().exp() * log_probs
        return (weights * losses).sum(), {"cross_entropy": -(weights * log_probs).sum()}
