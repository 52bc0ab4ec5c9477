"""Drafting by heads that read the model's hidden states: its own MTP heads, or one of EAGLE-3.

A head costs a layer, not a model, and sees what the model computed. The first head proposes a token from the
hidden state at the last position that was read and from the token that was chosen there. Each further head
proposes one token more. Its pair at a position has the token after the one that the head before it read
there, and the hidden state that this head gave, or the model's where heads are not chained (MiMo). So a
further head's last pairs have drafted tokens, and are read again once these are accepted or rejected. Past
the last head, that one goes on by itself: its own hidden state takes the model's place, token after token.

What heads have read of drafts they forget again; what the model did not show them, of a prompt whose pages
came from the prefix cache, they do without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cutaway.generate.speculative import CATCH_UP, MOST, DraftedText, Drawing


class _Read:
    """A head's state of a text: pairs that it read, and hidden states whose pairs it has not read yet.

    ``at`` is the position of the first of those; ``held`` pairs in the state are of the text itself. A pair's
    token is the first after its position for head 0, and for head ``number`` so many further.
    """

    def __init__(self, state: Any, number: int, at: int) -> None:
        self.state, self.number, self.at, self.held = state, number, at, 0
        self.rows = np.empty((0, 0), np.float32)

    def add(self, start: int, rows: np.ndarray) -> bool:
        """Keep the hidden states from position ``start`` on; False where some before them are missing."""
        if start < self.at:  # those of pairs that were read
            start, rows = self.at, rows[self.at - start :]
        before = self.rows[: start - self.at]
        if len(before) < start - self.at:
            return False
        self.rows = np.concatenate([before, rows]) if len(before) else rows
        return True

    def pairs(
        self, ids: np.ndarray, most: int, drafted: np.ndarray | None = None
    ) -> tuple[list[int], np.ndarray]:
        """The next pairs of ids, at most so many: tokens, and their hidden states, of which ``drafted`` are
        the last.
        """
        rows, first = self.rows, self.at + 1 + self.number
        if drafted is not None and len(drafted):
            rows = np.concatenate([rows, drafted]) if len(rows) else drafted
        count = max(0, min(most, len(rows), len(ids) - first))
        return ids[first : first + count].tolist(), rows[:count]

    def passed(self, count: int) -> None:
        """Note that so many pairs of the text were read."""
        self.at, self.rows, self.held = self.at + count, self.rows[count:], self.held + count

    def rewind(self) -> None:
        """Forget pairs of drafts."""
        if self.state.length > self.held:
            self.state.truncate(self.held)


class _Known:
    """What the heads know of a text, whose hidden states they were shown from position ``at`` on.

    ``drafted``: the hidden states [t d] that the next head reads for pairs of drafts, where heads are
    chained; ``last``: the one [1 d] that a head gave last.
    """

    def __init__(self, heads: Sequence[Any], at: int) -> None:
        self.heads = [_Read(head.new_state(), number, at) for number, head in enumerate(heads)]
        self.drafted = self.last = np.empty((0, 0), np.float32)


class HeadProposer(Drawing):
    """Heads in their order (runtime/draft_heads.py), which draw as each text's own sampler will."""

    def __init__(self, heads: Sequence[Any], vocab: int) -> None:
        super().__init__(vocab)
        self.heads, self.watches = heads, heads[0].watches

    def see(self, text: DraftedText, start: int, values: Mapping[str, np.ndarray]) -> None:
        """Take the hidden states of ids from position ``start`` on, of which the last may be drafts."""
        rows, chained = self.heads[0].seen(values), self.heads[0].chained
        if text.own is None or not text.own.heads[0].add(start, rows):
            text.own = _Known(self.heads, start)
            text.own.heads[0].add(start, rows)
        for own in () if chained else text.own.heads[1:]:
            own.add(start, rows)

    def kind(self, text: DraftedText) -> int | None:
        if text.own is None:
            return None
        first, ids = text.own.heads[0], text.history.ids
        if first.at + len(first.rows) < len(ids) - 1:
            return None
        if first.held + len(ids) - 1 - first.at + MOST > self.heads[0].max_context:
            return None
        behind = False
        for head, own in zip(self.heads, text.own.heads, strict=True):
            tokens, rows = own.pairs(ids, CATCH_UP)
            if len(tokens) == CATCH_UP:
                own.rewind()
                _, hidden = head.read([(tokens, self._hidden(own, rows))], [own.state], wanted=False)
                self._passed(text.own, own, hidden)
                behind = True
        return 0 if not behind and first.pairs(ids, 1)[0] else None

    def read(self, texts: Sequence[DraftedText], ahead: Sequence[np.ndarray], round: int) -> np.ndarray:
        """The logits float32 [b v] of what comes after each text and its draft so far."""
        number = min(round, len(self.heads) - 1)
        head, reads, pairs = self.heads[number], [text.own.heads[number] for text in texts], []
        for text, own, ids in zip(texts, reads, ahead, strict=True):
            if round > number:
                pairs.append(([int(ids[-1])], text.own.last))
                continue
            own.rewind()
            tokens, rows = own.pairs(ids, len(ids), text.own.drafted if number and head.chained else None)
            pairs.append((tokens, self._hidden(own, rows)))
        logits, hidden = head.read(pairs, [own.state for own in reads])
        ends = np.cumsum([len(tokens) for tokens, _ in pairs])
        for text, own, given in zip(texts, reads, np.split(hidden, ends[:-1]), strict=True):
            text.own.last = given[-1:]
            if round == number:
                whole = max(0, len(given) - number)  # pairs without drafts
                text.own.drafted = given[whole:]
                self._passed(text.own, own, given[:whole])
        if head.ids is None:
            return logits
        scored = np.full((len(logits), head.vocab), -np.inf, np.float32)
        scored[:, head.ids] = logits
        return scored

    def _hidden(self, own: _Read, rows: np.ndarray) -> np.ndarray:
        """The hidden states of rows of pairs: the first head's are kept as the model computed them."""
        return self.heads[0].hidden(rows) if own.number == 0 else rows

    def _passed(self, known: _Known, own: _Read, hidden: np.ndarray) -> None:
        """Note that a head read pairs of the text itself, and gave these hidden states."""
        if own.number + 1 < len(self.heads) and self.heads[0].chained:
            known.heads[own.number + 1].add(own.at, hidden)
        own.passed(len(hidden))
