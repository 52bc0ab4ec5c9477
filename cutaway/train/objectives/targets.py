"""Cross-entropy of the targets that have a weight, and how many of them are the likeliest token.

    loss = sum over weighted targets of w (-log softmax(logits)[target])

Only their rows reach the head: where few targets are scored, most of the head's work falls away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cutaway.train.objectives.common.objective import Objective, Source

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.train.trainable import Trainable, TrainingBatch


@dataclass(frozen=True)
class Config(Objective):
    """Nothing to choose."""

    source: ClassVar[Source] = "program"

    def loss(self, trainable: Trainable, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of losses, and the weight of the targets that are right."""
        import torch

        hidden, _ = trainable.hidden(batch)
        weights = batch.loss_weights
        if weights is None:
            weights = torch.ones_like(batch.targets, dtype=torch.float32)
        kept, softcap = weights > 0, trainable.decoder.config.softcap
        logits = torch.nn.functional.linear(hidden[kept], trainable.head_weight).float()
        if softcap is not None:
            logits = softcap * (logits / softcap).tanh()
        losses = torch.nn.functional.cross_entropy(logits, batch.targets[kept], reduction="none")
        loss = (weights[kept] * losses).sum()
        right = (weights[kept] * (logits.argmax(-1) == batch.targets[kept])).sum()
        return loss, {"cross_entropy": loss, "right": right}

    def report(self, sums: dict[str, float], weight: float) -> dict[str, float]:
        """Cross-entropy in nats and accuracy, both of the weighted targets."""
        return {"cross_entropy": sums["cross_entropy"] / weight, "accuracy": sums["right"] / weight}
