"""Drafting by a head that reads the model's hidden states: its own MTP heads, or one of EAGLE-3.

A head costs a layer, not a model, and sees what the model computed: it proposes the token after the next from
the hidden state at the last position that was read and from the token that was chosen there; then its own
hidden state takes the model's place, token after token. What it has read of drafts it forgets again; what
the model did not show it, of a prompt whose pages came from the prefix cache, it does without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cutaway.generate.speculative import CATCH_UP, MOST, DraftedText, Drawing


class _Read:
    """A head's state of a text: pairs that it read, and hidden states whose pairs it has not read yet.

    ``at`` is the position of the first of those; ``held`` pairs in the state are of the text itself.
    """

    def __init__(self, state: Any, at: int) -> None:
        self.state, self.at, self.held = state, at, 0
        self.rows = np.empty((0, 0), np.float32)
        self.last = self.rows  # the hidden state [1 d] that the head gave last

    def add(self, start: int, rows: np.ndarray) -> bool:
        """Keep the hidden states from position ``start`` on; False where some before them are missing."""
        if start < self.at:  # those of pairs that were read
            start, rows = self.at, rows[self.at - start :]
        before = self.rows[: start - self.at]
        if len(before) < start - self.at:
            return False
        self.rows = np.concatenate([before, rows]) if len(before) else rows
        return True

    def pairs(self, ids: np.ndarray, most: int) -> tuple[list[int], np.ndarray]:
        """The next pairs of the text, at most so many: tokens, and the hidden states before them."""
        count = min(most, len(self.rows), len(ids) - 1 - self.at)
        return ids[self.at + 1 : self.at + 1 + count].tolist(), self.rows[:count]

    def passed(self, count: int) -> None:
        """Note that so many pairs of the text were read."""
        self.at, self.rows, self.held = self.at + count, self.rows[count:], self.held + count

    def rewind(self) -> None:
        """Forget pairs of drafts."""
        if self.state.length > self.held:
            self.state.truncate(self.held)


class HeadProposer(Drawing):
    """A head (runtime/draft_heads.py), which draws as each text's own sampler will."""

    def __init__(self, head: Any, vocab: int) -> None:
        super().__init__(vocab)
        self.head, self.watches = head, head.watches

    def see(self, text: DraftedText, start: int, values: Mapping[str, np.ndarray]) -> None:
        """Take the hidden states of ids from position ``start`` on, of which the last may be drafts."""
        rows, own = self.head.hidden(values), text.own
        if own is None or not own.add(start, rows):
            text.own = _Read(self.head.new_state(), start)
            text.own.add(start, rows)

    def kind(self, text: DraftedText) -> int | None:
        own, ids = text.own, text.history.ids
        if own is None or own.at + len(own.rows) < len(ids) - 1:
            return None
        if own.held + len(ids) - 1 - own.at + MOST > self.head.max_context:
            return None
        tokens, rows = own.pairs(ids, CATCH_UP)
        if len(tokens) < CATCH_UP:
            return 0 if tokens else None
        own.rewind()
        self.head.read([(tokens, rows)], [own.state], wanted=False)
        own.passed(CATCH_UP)
        return None

    def read(self, texts: Sequence[DraftedText], ahead: Sequence[np.ndarray], round: int) -> np.ndarray:
        """The logits float32 [b v] of what comes after each text and its draft so far."""
        pairs = []
        for text, ids in zip(texts, ahead, strict=True):
            own = text.own
            if round == 0:
                own.rewind()
                pairs.append(own.pairs(ids, CATCH_UP))
            else:
                pairs.append(([int(ids[-1])], own.last))
        logits, hidden = self.head.read(pairs, [text.own.state for text in texts])
        for n, (text, (tokens, _)) in enumerate(zip(texts, pairs, strict=True)):
            text.own.last = hidden[n : n + 1]
            if round == 0:
                text.own.passed(len(tokens))
        if self.head.ids is None:
            return logits
        whole = np.full((len(logits), self.head.vocab), -np.inf, np.float32)
        whole[:, self.head.ids] = logits
        return whole
