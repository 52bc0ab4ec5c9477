"""How large a step is, as a function of when: a factor from 0 to 1 on the optimizer's rate. Imports no torch.

All rise linearly over ``warmup`` steps first, since Adam's second moments mean nothing yet.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 down to ``floor`` (1608.03983)."""

    warmup_steps: int = 0
    min_ratio: float = 0.1

    def factor(self, step: int, steps: int) -> float:
        """The factor of step 0, 1, ..., ``steps`` - 1."""
        return _after(self.warmup_steps, step, steps, self._fall)

    def _fall(self, done: float) -> float:
        return self.min_ratio + (1 - self.min_ratio) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Linear:
    """A straight line from 1 down to ``floor`` (2502.15938 finds that 0 is best)."""

    warmup_steps: int = 0
    min_ratio: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        """The factor of step 0, 1, ..., ``steps`` - 1."""
        return _after(self.warmup_steps, step, steps, lambda done: 1 - (1 - self.min_ratio) * done)


@dataclass(frozen=True)
class WSD:
    """Warm up, stay, and fall only over the last ``decay`` share of the steps (2404.06395).

    A run that has not begun to fall can be made longer without having lost anything. The fall is 1 - sqrt,
    which 2405.18392 finds best.
    """

    warmup_steps: int = 0
    decay_ratio: float = 0.2
    min_ratio: float = 0.0

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
