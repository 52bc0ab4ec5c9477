"""An answer under a grammar that is complete within a number of tokens: its end is kept in reach.

    constraint = BoundedConstraint(grammar.begin(tokenizer), tokenizer, 128)

A grammar alone lets a model write on until it is cut off in the middle, as small models do that repeat an
array's item for ever. Here each state of the grammar has a completion, a short way to its end: open strings,
arrays and objects closed, what is still required filled in. Where the tokens left are near its length, only
tokens are allowed after which a completion still fits; at the last moment that is the completion itself.

JSON, and text that may end anywhere, always have a completion. Where none is found (a pattern of unknown
end), or the shortest one is longer than the limit from the start, the grammar holds and the limit does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cutaway.generate.constrain import Constraint, Vocabulary

MARGIN = 96  # tokens left beyond a completion, below which each candidate is tried
CANDIDATES, MASS = 4, 0.95  # of the likeliest tokens that are tried: how many, and what they hold together


class BoundedConstraint:
    """A grammar's constraint for an answer of at most ``limit`` tokens, an end token not counted."""

    def __init__(self, inner: Constraint, tokenizer: Vocabulary, limit: int) -> None:
        self.inner, self.tokenizer, self.limit = inner, tokenizer, limit
        self._left = limit
        self._next_look = limit  # how many tokens are left when completions are looked at again
        self._known: dict[int, list[int] | None] = {}  # the completion after each token that was tried
        self._completion: list[int] | None = None

    @property
    def done(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        return self.inner.done

    def mask(self, logits: np.ndarray) -> None:
        """Set the logits [v] that may not come next to -inf, in place."""
        self.inner.mask(logits)
        self._known = {}
        if self._left > self._next_look:
            return
        shortest = self._completion
        if shortest is None:
            shortest = self.inner.completion(self._left, self.tokenizer)
        if shortest is None:
            return
        spare = self._left - len(shortest)
        if spare > MARGIN:  # half of what is spare may be written before a look at what it has opened
            self._next_look = self._left - (spare - MARGIN + 1) // 2
            return
        safe = [id for id in _likeliest(logits) if self._fits(id)]
        if not safe and shortest:
            safe = shortest[:1]
            self._known[safe[0]] = shortest[1:]
        if safe:
            kept = logits[safe]
            logits[:] = -np.inf
            logits[safe] = kept

    def accept(self, id: int) -> None:
        """Advance by the chosen id."""
        self.inner.accept(id)
        self._left -= 1
        self._completion = self._known.get(id)

    def _fits(self, id: int) -> bool:
        """Whether an answer with this token can still end in time."""
        after = self.inner.after(id)
        if after is None:  # an end token: the answer may end here
            return True
        self._known[id] = after.completion(self._left - 1, self.tokenizer)
        return self._known[id] is not None


def _likeliest(logits: np.ndarray) -> list[int]:
    """The likeliest ids, the first ones of them that hold MASS together."""
    count = min(CANDIDATES, int(np.isfinite(logits).sum()))
    if not count:
        return []
    best = np.argpartition(-logits, count - 1)[:count]
    best = best[np.argsort(-logits[best], kind="stable")]
    weights: Any = np.exp(logits - logits[best[0]])
    share = np.cumsum(weights[best] / weights.sum())
    return best[: int((share < MASS).sum()) + 1].tolist()
