"""An answer under a grammar that is complete within a number of tokens: its end is kept in reach.

    constraint = BoundedConstraint(grammar.begin(tokenizer), tokenizer, 128)

A grammar alone lets a model write on until it is cut off in the middle, as small models do that repeat an
array's item for ever. Here each state of the grammar has a completion, a short way to its end: open strings,
arrays and objects closed, what is still required filled in. Where the tokens left are near its length, only
tokens are allowed after which a completion still fits; at the last moment that is the completion itself.
Letters inside a text change no completion by much, and are allowed untried while there is some room.

JSON, and text that may end anywhere, always have a completion. Where none is found (a pattern of unknown
end), or the shortest one is longer than the limit from the start, the grammar holds and the limit does not.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.generate.constrain import Constraint, Vocabulary
from cutaway.generate.endings import single_characters

MARGIN = 96  # tokens left beyond a completion, below which each candidate is tried
NEAR = 16  # tokens left beyond a completion, below which letters inside a text are tried too
CANDIDATES, MASS = 16, 0.99  # of the likeliest tokens that are tried: how many, and what they hold together
LONGEST = 512  # tokens of a completion
MARKS = b'"\\<>[]{}|'  # bytes of what may end a text, or begin a call


class BoundedConstraint:
    """A grammar's constraint for an answer of at most ``limit`` tokens; an end token counts where the grammar
    lets more follow.
    """

    def __init__(self, inner: Constraint, tokenizer: Vocabulary, limit: int) -> None:
        self.inner, self.tokenizer, self.limit = inner, tokenizer, limit
        self._left = limit
        self._next_look = limit  # how many tokens are left when completions are looked at again
        self._known: dict[int, list[int]] = {}  # the completion after each token that was tried
        self._completion: list[int] | None = None  # of the state here, or of one before it
        self._signs, self._letters = _letters_of(tokenizer)

    @property
    def done(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        return self.inner.done

    def fresh(self) -> BoundedConstraint:
        """The same for another answer."""
        return BoundedConstraint(self.inner.fresh(), self.tokenizer, self.limit)

    def mask(self, logits: np.ndarray) -> None:
        """Set the logits [v] that may not come next to -inf, in place."""
        self.inner.mask(logits)
        self._known = {}
        if not 0 < self._left <= self._next_look:
            return
        completion = self._completion = self._found()
        if completion is None:  # a later state may have one
            self._next_look = self._left - max(1, self._left // 4)
            return
        spare = self._left - len(completion)
        if spare > MARGIN:  # half of what is spare may be written before a look at what it has opened
            self._next_look = self._left - (spare - MARGIN + 1) // 2
            return
        untried = self._untried(logits, spare)
        safe = [id for id in _likeliest(logits, untried) if self._fits(id, completion)]
        if not safe and not untried.any() and completion:
            safe = completion[:1]
            self._known[safe[0]] = completion[1:]
        if safe or untried.any():
            kept = logits[safe]
            logits[~untried] = -np.inf
            logits[safe] = kept

    def accept(self, id: int) -> None:
        """Advance by the chosen id."""
        self.inner.accept(id)
        self._left -= 1
        self._completion = self._known.get(id, self._completion)

    def _found(self) -> list[int] | None:
        """A completion of the state here: the last one where it still is one."""
        known = self._completion
        if known is not None and len(known) <= self._left and self.inner.ends_after(known):
            return known
        return self.inner.completion(min(self._left, LONGEST))

    def _untried(self, logits: np.ndarray, spare: int) -> np.ndarray:
        """Which of the allowed ids [v] are letters inside a text, for which there is room."""
        found, count = np.zeros(len(logits), bool), min(len(logits), len(self._letters))
        if spare > NEAR and self._signs and np.isfinite(logits[self._signs]).all():
            found[:count] = self._letters[:count] & np.isfinite(logits[:count])
        return found

    def _fits(self, id: int, completion: list[int]) -> bool:
        """Whether an answer with this token can still end in time."""
        after = self.inner.after(id)
        if after is None:  # an end token: the answer may end here
            return True
        if completion[:1] == [id]:
            found: list[int] | None = completion[1:]
        elif len(completion) < self._left and after.ends_after(completion):
            found = completion
        else:
            found = after.completion(min(self._left - 1, LONGEST))
        if found is not None:
            self._known[id] = found
        return found is not None


def _likeliest(logits: np.ndarray, untried: np.ndarray) -> list[int]:
    """The likeliest ids but the untried, the first ones of them that with those hold MASS together."""
    tried = np.where(untried, -np.inf, logits)
    count = min(CANDIDATES, int(np.isfinite(tried).sum()))
    if not count:
        return []
    best = np.argpartition(-tried, count - 1)[:count]
    best = best[np.argsort(-tried[best], kind="stable")]
    weights: Any = np.exp(logits - logits.max())
    share = np.cumsum(weights[best] / weights.sum()) + weights[untried].sum() / weights.sum()
    return best[: int((share < MASS).sum()) + 1].tolist()


_letters: weakref.WeakKeyDictionary[Any, tuple[list[int], np.ndarray]] = weakref.WeakKeyDictionary()


def _letters_of(tokenizer: Vocabulary) -> tuple[list[int], np.ndarray]:
    """Ids that are allowed together inside a text alone, and which ids [v] are letters there. Made once."""
    if tokenizer not in _letters:
        control, marks = set(tokenizer.special.values()), set(MARKS)
        plain = np.ones(len(tokenizer), bool)
        for id in range(len(tokenizer)):
            try:
                plain[id] = id not in control and marks.isdisjoint(tokenizer.token_bytes(id))
            except UserError:  # a row of the table that no token has
                plain[id] = False
        singles = single_characters(tokenizer)
        _letters[tokenizer] = [singles[one] for one in "a " if one in singles], plain
    return _letters[tokenizer]
