"""IPO (2310.12036): the difference of log-ratios is drawn to 1 / (2 beta): sure pairs do not run away.

    loss = mean over pairs of (d(chosen) / |chosen| - d(rejected) / |rejected| - 1 / (2 beta))^2

d as in ``dpo.py``. It is divided by the answer's tokens, which the authors confirm; the sum is another loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.train.objectives import dpo
from cutaway.train.objectives.common.answers import Answers

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Config(dpo.Config):
    """``beta``: how strongly the reference holds."""

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        difference = chosen.ratios / chosen.tokens - rejected.ratios / rejected.tokens
        return (difference - 1 / (2 * self.beta)).square()
