"""Learning-rate schedules: a factor from 0 to 1 on the optimizer's learning rate. Imports no torch.

All rise linearly over ``warmup_steps`` first, because Adam's second moments are not yet estimated.
``min_ratio`` is the last factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cutaway.bounds import Bounded, Fraction, Natural


@dataclass(frozen=True)
class Cosine(Bounded):
    """Half a cosine from 1 down to ``min_ratio`` (1608.03983)."""

    warmup_steps: Natural = 0
    min_ratio: Fraction = 0.1

    def factor(self, step: int, steps: int) -> float:
        """The factor of step 0, 1, ..., ``steps`` - 1."""
        return _after(self.warmup_steps, step, steps, self._fall)

    def _fall(self, done: float) -> float:
        return self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Linear(Bounded):
    """A straight line from 1 down to ``min_ratio`` (2502.15938 finds that 0 is best)."""

    warmup_steps: Natural = 0
    min_ratio: Fraction = 0.0

    def factor(self, step: int, steps: int) -> float:
        """The factor of step 0, 1, ..., ``steps`` - 1."""
        return _after(self.warmup_steps, step, steps, lambda done: 1 - (1 - self.min_ratio) * done)


@dataclass(frozen=True)
class WSD(Bounded):
    """Warm up, stay constant, and decay over the last ``decay_ratio`` of the steps (2404.06395).

    A run that has not begun to decay can be extended without loss. The decay is 1 - sqrt, which 2405.18392
    finds best.
    """

    warmup_steps: Natural = 0
    decay_ratio: Fraction = 0.2
    min_ratio: Fraction = 0.0

    def factor(self, step: int, steps: int) -> float:
        """The factor of step 0, 1, ..., ``steps`` - 1."""
        return _after(self.warmup_steps, step, steps, self._fall)

    def _fall(self, done: float) -> float:
        late = max(0.0, (done - (1 - self.decay_ratio)) / self.decay_ratio) if self.decay_ratio else 0.0
        return 1 - (1 - self.min_ratio) * math.sqrt(late)


def _after(warmup_steps: int, step: int, steps: int, fall: Callable[[float], float]) -> float:
    """The warm-up, then ``fall`` of the fraction of the remaining steps that is done."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return fall(min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps)))
