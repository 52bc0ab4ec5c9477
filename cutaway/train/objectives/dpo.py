"""DPO, direct preference optimisation (2305.18290): the policy itself is the reward model.

    d(y) = sum over the answer's tokens of log pi(y_t) - log reference(y_t), its end token among them
    loss = mean over pairs of -log sigmoid(beta (d(chosen) - d(rejected)))

It is ln 2 before the first step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cutaway.bounds import Positive
from cutaway.train.objectives.common.answers import Answers, Pairwise

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Config(Pairwise):
    """``beta``: how strongly the reference holds."""

    reference: ClassVar[bool] = True
    beta: Positive = 0.1

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        from torch.nn.functional import logsigmoid

        return -logsigmoid(self.rewards(chosen) - self.rewards(rejected))

    def rewards(self, answers: Answers) -> Tensor:
        return self.beta * answers.ratios
