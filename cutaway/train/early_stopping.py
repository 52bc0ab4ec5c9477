"""When a run stops early: its validation loss rises, and what is learned no longer carries over.

The validation losses so far decide it alone, so that a run which continues decides as one that was never
stopped. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cutaway.train import curve
from cutaway.train.curve import Points

LOSS = "validation_loss"


@dataclass
class EarlyStopping:
    """After ``patience`` evaluations in a row above the lowest loss a run stops; 0: never."""

    patience: int
    losses: Points = field(default_factory=list)

    @classmethod
    def of(cls, patience: int, folder: Path, step: int) -> EarlyStopping:
        """With the losses of a run's folder up to this step."""
        known = curve.read_curve(folder).get(LOSS, [])
        return cls(patience, [point for point in known if point[0] <= step])

    def add(self, step: int, figures: dict[str, float]) -> bool:
        """Whether an evaluation has the lowest loss so far."""
        if not self.patience or LOSS not in figures:
            return False
        self.losses.append((step, figures[LOSS]))
        return self.best == self.losses[-1]

    @property
    def best(self) -> tuple[int, float] | None:
        """The first step of the lowest loss, and that loss; None before the first evaluation, or if off."""
        return min(self.losses, key=lambda point: point[1]) if self.patience and self.losses else None

    @property
    def stops(self) -> bool:
        """Whether the loss has risen for as long as ``patience`` allows."""
        return self.best is not None and len(self.losses) - 1 - self.losses.index(self.best) >= self.patience
