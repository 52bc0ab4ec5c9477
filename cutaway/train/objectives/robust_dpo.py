"""Robust DPO (2403.00409): its mean over labels that flip with probability e is DPO's loss on true ones.

loss = ((1 - e) dpo(chosen, rejected) - e dpo(rejected, chosen)) / (1 - 2 e)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cutaway.bounds import Bound
from cutaway.train.objectives import dpo
from cutaway.train.objectives.common.answers import Answers

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Config(dpo.Config):
    """``label_smoothing``: the probability that a label is flipped."""

    label_smoothing: Annotated[float, Bound(0, 0.5, below=True)] = 0.1

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        right, wrong = super().losses(chosen, rejected), super().losses(rejected, chosen)
        return ((1 - self.label_smoothing) * right - self.label_smoothing * wrong) / (
            1 - 2 * self.label_smoothing
        )
