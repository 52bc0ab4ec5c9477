"""SimPO (2405.14734): the reward is the mean log-probability of a token, and the chosen answer's is to be
greater by a margin. There is no reference.

    loss = mean over pairs of -log sigmoid(beta m(chosen) - beta m(rejected) - gamma)     m as in ``orpo.py``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.bounds import NonNegative, Positive
from cutaway.train.objectives.common.answers import Answers, Pairwise

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Config(Pairwise):
    """``beta`` scales the reward, ``gamma`` is the margin."""

    beta: Positive = 2.0
    gamma: NonNegative = 1.0

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(self.rewards(chosen) - self.rewards(rejected) - self.gamma)

    def rewards(self, answers: Answers) -> Tensor:
        return self.beta * answers.log_probs / answers.tokens
