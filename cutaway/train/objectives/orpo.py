"""ORPO (2403.07691): learns the chosen answer and lowers the rejected one's odds at once, with no reference.

    m(y) = mean over the answer's tokens of log pi(y_t)        log odds(y) = m - log(1 - exp m)
    loss = mean over pairs of -m(chosen) - lambda log sigmoid(log odds(chosen) - log odds(rejected))

trl's first term counts the prompt's tokens too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.bounds import Positive
from cutaway.train.objectives.common.answers import Answers, Pairwise

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Config(Pairwise):
    """``odds_weight`` is lambda."""

    odds_weight: Positive = 0.1

    def losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        from torch.nn.functional import logsigmoid

        likely, unlikely = self.rewards(chosen), self.rewards(rejected)
        odds = _log_odds(likely) - _log_odds(unlikely)
        return -likely - self.odds_weight * logsigmoid(odds)

    def rewards(self, answers: Answers) -> Tensor:
        return answers.log_probs / answers.tokens


def _log_odds(mean: Tensor) -> Tensor:
    return mean - (-mean.expm1()).log()
