"""A least length of an answer: before so many tokens no end token may come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cutaway.generate.batch.request import Constraint


class MinTokens:
    """A constraint, or none, under which no end token comes before so many tokens."""

    def __init__(self, inner: Constraint | None, least: int, ends: Sequence[int]) -> None:
        self.inner, self.left, self.ends = inner, least, list(ends)

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return self.inner is not None and self.inner.done

    def mask(self, logits: np.ndarray) -> None:
        """Set end tokens to -inf too, unless nothing else is allowed."""
        if self.inner is not None:
            self.inner.mask(logits)
        if self.left > 0:
            kept = logits[self.ends].copy()
            logits[self.ends] = -np.inf
            if not np.isfinite(logits).any():
                logits[self.ends] = kept

    def accept(self, id: int) -> None:
        """Advance by the chosen id."""
        self.left -= 1
        if self.inner is not None:
            self.inner.accept(id)
