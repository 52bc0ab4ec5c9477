"""What the attentions of 2014 and 2015 share: a memory to look at, and scores that become shares of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.hooks import tap
from cutaway.layers.norm import widened
from cutaway.shapes import Bool, Float, Int


@dataclass(frozen=True)
class Memory:
    """What an encoder left: ``values`` h, ``keys`` what is computed of them once, ``pos`` their places, -1
    for padding.
    """

    values: Float[Tensor, "b s m"]
    keys: Float[Tensor, "b s a"]
    pos: Int[Tensor, "b s"]

    @property
    def seen(self) -> Bool[Tensor, "b 1 s"]:
        return (self.pos >= 0)[:, None]


def shares(scores: Float[Tensor, "b t s"], seen: Bool[Tensor, "b t_or_1 s"]) -> Float[Tensor, "b t s"]:
    """A softmax over what is seen; a query that sees nothing gets zeros. Taps ``scores`` as they come."""
    scores = widened(tap("scores", scores)).masked_fill(~seen, -torch.inf)
    return torch.where(seen.any(-1, keepdim=True), torch.softmax(scores, dim=-1), 0.0)
