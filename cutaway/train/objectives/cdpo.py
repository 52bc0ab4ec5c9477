"""Conservative DPO (Mitchell 2023): a fraction e of the labels is taken to be the wrong way round.

    loss = (1 - e) dpo(chosen, rejected) + e dpo(rejected, chosen)

It is least where the chosen answer is preferred with probability 1 - e. Before release 1 trl computed it as
DPO with label smoothing, since then its DPO ignores that option.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.bounds import Decay
from cutaway.train.objectives import dpo
from cutaway.train.objectives.common.answers import Answers

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Config(dpo.Config):
    """``label_smoothing``: the fraction of labels that are wrong."""

    label_smoothing: Decay = 0.1

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        right, wrong = super().losses(chosen, rejected), super().losses(rejected, chosen)
        return (1 - self.label_smoothing) * right + self.label_smoothing * wrong
