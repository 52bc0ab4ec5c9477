"""What the attentions of 2014 and 2015 share: the encoder's memory, and attention weights over it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.hooks import tap
from cutaway.layers.norm import widened
from cutaway.shapes import Bool, Float, Int


@dataclass(frozen=True)
class Memory:
    """An encoder's output ``values`` h, the ``keys`` made of them once, and ``pos``, -1 for padding."""

    values: Float[Tensor, "b s m"]
    keys: Float[Tensor, "b s a"]
    pos: Int[Tensor, "b s"]

    @property
    def seen(self) -> Bool[Tensor, "b 1 s"]:
        return (self.pos >= 0)[:, None]


def attention_weights(
    scores: Float[Tensor, "b t s"], seen: Bool[Tensor, "b t_or_1 s"]
) -> Float[Tensor, "b t s"]:
    """A softmax over what is seen; a query that sees nothing gets zeros. Taps ``scores`` before the mask."""
    scores = widened(tap("scores", scores)).masked_fill(~seen, -torch.inf)
    return torch.where(seen.any(-1, keepdim=True), torch.softmax(scores, dim=-1), 0.0)
