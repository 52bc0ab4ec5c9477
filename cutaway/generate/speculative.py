"""Speculative decoding: a cheap proposer drafts tokens, and the model verifies them in one forward pass.

A pass over five tokens costs little more than over one, since the weights are read from memory once. Two
proposers:

- `PromptLookup` (prompt lookup, after 2304.04487): the text's last few tokens occurred before, so what
  followed them then may follow now. It costs nothing, and is for texts that repeat themselves: code, lists.
- `DraftModel`: a smaller model of the same vocabulary drafts (2211.17192, 2302.01318).

The text's distribution is the model's own. A draft without randomness (`PromptLookup`, or any at temperature
0) is verified by choosing as always and comparing: the same seed gives the same text as without drafts. A
token drawn from the draft's distribution q is accepted with probability min(1, p / q), p being the model's;
else another is drawn from what p has over q:

    sum over draws from q:  q min(1, p / q) + P(none accepted) (p - q)+ / sum (p - q)+  =  p
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from cutaway.generate.engine import Engine
from cutaway.generate.sample import History, Sampler, draw, mask_padding
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.session import Session

FIRST, MOST = 4, 16  # drafted tokens at first, and at most
LONGEST_MATCH, SHORTEST_MATCH = 4, 2  # tokens at the end that must have occurred before


class Proposal(NamedTuple):
    """Tokens that may come next, and the distribution float64 [v] each was drawn from, if any."""

    ids: Sequence[int]
    probs: Sequence[np.ndarray] | None = None


@runtime_checkable
class Proposer(Protocol):
    """Drafts how a text goes on."""

    def propose(self, history: History, count: int) -> Proposal:
        """At most this many tokens; none where there is nothing to go by."""
        ...


class PromptLookup:
    """What followed the last tokens where they occurred before: the longest, latest match."""

    def propose(self, history: History, count: int) -> Proposal:
        ids = history.ids
        for length in range(min(LONGEST_MATCH, len(ids) - 1), SHORTEST_MATCH - 1, -1):
            found = np.lib.stride_tricks.sliding_window_view(ids[:-1], length) == ids[-length:]
            starts = np.flatnonzero(found.all(axis=1))
            if len(starts):
                after = ids[int(starts[-1]) + length :]
                return Proposal(np.resize(after, count).tolist())  # the match repeats if it is too short
        return Proposal([])


class DraftModel:
    """A smaller model that drafts with the text's own SamplingParams."""

    def __init__(self, engine: Engine, vocab: int, settings: SamplingParams) -> None:
        self.session = Session(engine)
        self.vocab = vocab
        entropy = np.random.SeedSequence(settings.seed).spawn(1)[0]  # random numbers of its own
        self.sampler = Sampler(settings, entropy)

    def propose(self, history: History, count: int) -> Proposal:
        ahead, ids, probs = history.copy(), [], []
        count = min(count, self.session.engine.max_context - len(ahead.ids))
        if count < 1:
            return Proposal([])
        logits, _ = self.session.prefill(ahead.ids.tolist())
        while True:
            processed = self.sampler.process(mask_padding(logits, self.vocab), ahead)
            ids.append(self.sampler.choose(processed))
            probs.append(probabilities(processed))
            if len(ids) == count:
                return Proposal(ids, None if self.sampler.greedy else probs)
            ahead.append(ids[-1])
            logits = self.session.step(ids[-1])


class Speculation:
    """A proposer, and the length of its next draft, which grows while whole drafts are accepted."""

    def __init__(self, proposer: Proposer) -> None:
        self.proposer = proposer
        self.count = FIRST
        self.drafted = self.accepted = 0

    def propose(self, history: History, room: int) -> Proposal:
        """A draft of at most ``room`` tokens."""
        count = min(self.count, room)
        return self.proposer.propose(history, count) if count > 0 else Proposal([])

    def update(self, drafted: int, accepted: int) -> None:
        """Record how many tokens of a draft were accepted."""
        self.drafted += drafted
        self.accepted += accepted
        self.count = min(2 * self.count, MOST) if accepted == drafted else min(accepted + 1, MOST)


def verify(
    sampler: Sampler, logits: np.ndarray, history: History, id: int, draft_probs: np.ndarray | None
) -> int:
    """The next id by the model's logits [v], where ``id`` was drafted: it, or another."""
    if draft_probs is None:
        return sampler(logits, history)
    processed = sampler.process(logits, history)
    model = probabilities(processed)
    if sampler.generator.random() * draft_probs[id] < model[id]:
        return id
    with np.errstate(divide="ignore"):
        return draw(np.log(residual(model, draft_probs)), sampler.generator)


def residual(model: np.ndarray, draft_probs: np.ndarray) -> np.ndarray:
    """What the model's distribution has over the proposer's, float64 [v] summing to 1."""
    left = np.maximum(model - draft_probs, 0)
    total = left.sum()
    return left / total if total > 0 else model  # equal but for rounding: a draft is almost never rejected


def probabilities(processed: np.ndarray) -> np.ndarray:
    """softmax, float64 [v]."""
    weights = np.exp(np.subtract(processed, processed.max(), dtype=np.float64))
    return weights / weights.sum()
