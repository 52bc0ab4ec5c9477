"""Next-token prediction: the cross-entropy of each target, weighted.

    loss = sum over targets of w (-log softmax(logits)[target] + z_loss (log sum exp logits)^2)
           + router_aux_loss (sum of w) (sum over sparse layers of load_balancing)

w are the batch's loss weights; the loop divides by their sum over a step's micro-batches and devices.
z-loss keeps the logits' normaliser near 1 (PaLM, 2204.02311); load balancing is 2101.03961's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.bounds import NonNegative
from cutaway.train.objectives.common.objective import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.train.trainable import Trainable, TrainingBatch


@dataclass(frozen=True)
class Config(Objective):
    """``router_aux_loss`` weighs load balancing."""

    z_loss: NonNegative = 0.0
    router_aux_loss: NonNegative = 0.01

    def loss(self, trainable: Trainable, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of a micro-batch's losses, and the sums that ``report`` reads."""
        from cutaway.train.loss import chunked, load_balancing

        hidden, routings = trainable.hidden(batch)
        targets, weights = batch.targets.flatten(), batch.loss_weights
        loss, cross_entropy = chunked(
            hidden.flatten(0, 1),
            trainable.head_weight,
            targets,
            self.chunk_size,
            self.z_loss,
            trainable.decoder.config.softcap,
            None if weights is None else weights.flatten(),
        )
        balances = [load_balancing(routing, batch.pos >= 0) for routing in routings]
        loss = loss + self.router_aux_loss * batch.weight * sum(balances)
        sizes = trainable.token_bytes[targets].double()
        size = sizes.sum() if weights is None else (sizes * weights.flatten()).sum()
        return loss, {"cross_entropy": cross_entropy, "bytes": size}

    def report(self, sums: dict[str, float], weight: float) -> dict[str, float]:
        """Cross-entropy a token in nats, and bits per byte of text."""
        cross_entropy = sums["cross_entropy"] / weight
        bits = cross_entropy * weight / math.log(2) / max(int(sums["bytes"]), 1)
        return {"cross_entropy": cross_entropy, "bits_per_byte": bits}
