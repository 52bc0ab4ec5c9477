"""Constraints of an encoder-decoder's generation config on the tokens that it writes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cutaway.generate.batch.request import Constraint


class TargetRules:
    """The ids of ``never`` are not written, and the text begins with ``first`` where it is given.

    ``inner``: a constraint beside these.
    """

    def __init__(self, first: int | None, never: Sequence[int], inner: Constraint | None = None) -> None:
        self.first, self.never, self.inner = first, list(never), inner

    def mask(self, logits: np.ndarray) -> None:
        """Set the logits [v] of what may not come next to -inf, in place."""
        if self.inner is not None:
            self.inner.mask(logits)
        logits[self.never] = -np.inf
        if self.first is not None:
            logits[np.arange(len(logits)) != self.first] = -np.inf

    def accept(self, id: int) -> None:
        """Advance by the chosen id."""
        self.first = None
        if self.inner is not None:
            self.inner.accept(id)

    @property
    def done(self) -> bool:
        """Whether nothing may follow."""
        return self.inner is not None and self.inner.done
