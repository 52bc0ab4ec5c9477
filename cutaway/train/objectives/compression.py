"""Compression (MAD, 2403.17844): from its last token alone, a row's scored targets are read back.

    h_i = h + p_i                   h [d]: what the head would read at the last token, i: a scored target
    logits_i = W (h_i + W2 relu(W1 h_i))                                             W: the output head

p [n d], W1 [4d d] and W2 [d 4d] are trained beside the model. They depend on its width alone, so that models
of one width have the same readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.bounds import Count
from cutaway.errors import UserError
from cutaway.train.objectives import targets

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.model.decoder import Decoder
    from cutaway.train.trainable import Trainable, TrainingBatch

PLACES, IN, OUT = "compression_places", "compression_in", "compression_out"


@dataclass(frozen=True)
class Config(targets.Config):
    """``length`` is how many targets of each row are scored."""

    length: Count = 32

    def attach(self, model: Decoder) -> None:
        """p, W1 and W2, as normal as the model's own weights at the start."""
        import torch
        from torch import nn

        width = model.config.width
        for name, rows, columns in (
            (PLACES, self.length, width),
            (IN, 4 * width, width),
            (OUT, width, 4 * width),
        ):
            model.register_parameter(name, nn.Parameter(0.02 * torch.randn(rows, columns)))

    def loss(self, trainable: Trainable, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the scored targets' losses, and how many are right."""
        from torch.nn.functional import cross_entropy, linear, relu

        weights = batch.loss_weights
        if weights is None or not bool(((weights > 0).sum(1) == self.length).all()):
            raise UserError(f"config.objective: compression reads rows of {self.length} scored targets each")
        places, inner, outer = map(trainable.model.get_parameter, (PLACES, IN, OUT))
        hidden, _ = trainable.hidden(batch)
        each = hidden[:, -1:] + places
        logits = linear(each + linear(relu(linear(each, inner)), outer), trainable.head_weight).float()
        due = batch.targets[weights > 0].view(len(weights), self.length)
        loss = cross_entropy(logits.flatten(0, 1), due.flatten(), reduction="sum")
        return loss, {"cross_entropy": loss, "right": (logits.argmax(-1) == due).sum()}
