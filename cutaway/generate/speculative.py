"""Speculative decoding: a cheap proposer drafts tokens, and the model verifies them in one forward pass.

A pass over five tokens costs little more than over one, since the weights are read from memory once. Two
proposers:

- `PromptLookup` (prompt lookup, after 2304.04487): the text's last few tokens occurred before, so what
  followed them then may follow now. It costs nothing, and is for texts that repeat themselves: code, lists.
- `DraftModel`: a smaller model of the same vocabulary drafts (2211.17192, 2302.01318).

The text is the one that the model writes without drafts, for every seed. Each token is chosen from the
model's logits by the sampler as always, and a drafted token is accepted if it is the one that was chosen. A
draft model draws with the random numbers that the sampler will use: so the two mostly agree where their
distributions do. (Rejection sampling accepts a little more often, but a seed's text would then depend on how
much was drafted, which depends on the clock.)

How much is drafted is chosen anew for each step (`DraftLengths`), by what was accepted and by how long steps
of so many tokens took.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.generate.engine import Rewinding
from cutaway.generate.sample import History, Sampler, mask_padding

MOST = 16  # drafted tokens of a text in a step
ROWS = 48  # drafted tokens of all texts in a step
LONGEST_MATCH, SHORTEST_MATCH = 16, 2  # tokens at the end that must have occurred before
USUAL = 8  # the latest steps of so many tokens, whose median is what such a step takes
PRIOR = 4.0  # drafts that what is known of other texts counts for
REMEMBERED = 64.0  # drafts of a text, after which older ones count half
ONE_MORE = 1 / 32  # of a step without drafts, that one more token is taken to cost before any was measured
PROBE = 32  # steps after which one is tried without drafts, or with, to see what it takes
SELDOM = 1024  # steps after which drafts are tried that never pay
TRIED = 2  # tokens that are drafted to see what a step takes
SLOWER = 0.97  # of its pace without drafts, that the drafts of others leave to a client
CATCH_UP = 256  # ids of texts that a draft model reads in a step to know them


class DraftedText:
    """A text as drafting sees it: its tokens, its sampler, and how its drafts fared."""

    def __init__(self, history: History, sampler: Sampler, client: str = "") -> None:
        self.history, self.sampler, self.client = history, sampler, client
        self.drafted = self.accepted = 0
        self.kind = 0  # of the draft that is proposed next (`Proposer.kind`)
        self.own: Any = None  # what the proposer knows of the text
        self._right = self._tried = 0.0

    def chance(self, prior: float) -> float:
        """The chance that a drafted token is accepted, by this text's drafts and those of others."""
        return (self._right + PRIOR * prior) / (self._tried + PRIOR)

    def update(self, drafted: int, accepted: int) -> None:
        """Record how many tokens of a draft were accepted. What follows the first wrong one says nothing."""
        if self._tried > REMEMBERED:
            self._right, self._tried = self._right / 2, self._tried / 2
        self._right += accepted
        self._tried += accepted + (accepted < drafted)


@runtime_checkable
class Proposer(Protocol):
    """Drafts how texts go on. It proposes the same for the same text."""

    def kind(self, text: DraftedText) -> int | None:
        """The kind of draft that can be proposed, for which acceptance is learned; None: there is none."""
        ...

    def propose(self, texts: Sequence[DraftedText], counts: Sequence[int]) -> list[list[int]]:
        """At most so many tokens of each text."""
        ...

    def seconds(self, rounds: int) -> float:
        """What drafting so many tokens takes before they are verified."""
        ...


class PromptLookup:
    """What followed the last tokens where they occurred before: the longest match, of those the latest."""

    def kind(self, text: DraftedText) -> int | None:
        text.own = found = match(text.history.ids)
        return None if found is None else found[1]

    def propose(self, texts: Sequence[DraftedText], counts: Sequence[int]) -> list[list[int]]:
        drafts = []
        for text, count in zip(texts, counts, strict=True):
            after = text.history.ids[text.own[0] :] if count else ()
            drafts.append(np.resize(after, count).tolist() if count else [])  # a short match repeats
        return drafts

    def seconds(self, rounds: int) -> float:
        return 0.0


def match(ids: np.ndarray) -> tuple[int, int] | None:
    """Where the longest end of a text that occurred before (the latest of them) went on, and its length."""
    ends, found = np.flatnonzero(ids[:-1] == ids[-1]), None
    for length in range(1, min(LONGEST_MATCH, len(ids) - 1) + 1):
        if not len(ends):
            break
        found = (int(ends[-1]) + 1, length)
        ends = ends[ends >= length]
        ends = ends[ids[ends - length] == ids[-1 - length]] if length < len(ids) - 1 else ends[:0]
    return found if found is not None and found[1] >= SHORTEST_MATCH else None


class DraftModel:
    """A smaller model, which draws as each text's own sampler will. ``vocab``: how many ids are tokens."""

    def __init__(self, engine: Any, vocab: int) -> None:
        self.engine, self.vocab = engine, vocab
        self._rounds: deque[float] = deque(maxlen=USUAL)  # seconds of a token of each text

    def kind(self, text: DraftedText) -> int | None:
        if len(text.history.ids) >= self.engine.max_context:
            return None
        if text.own is None:
            text.own = _Read(self.engine)
        read = text.own.rewind(text.history.ids)
        if len(text.history.ids) - read <= CATCH_UP:
            return 0
        ids = text.history.ids[read : read + CATCH_UP].tolist()
        self.engine.read([ids], [text.own.state], [])
        text.own.ids += ids
        return None

    def propose(self, texts: Sequence[DraftedText], counts: Sequence[int]) -> list[list[int]]:
        drafts: list[list[int]] = [[] for _ in texts]
        ahead = {n: text.history.copy() for n, text in enumerate(texts) if counts[n]}
        generators = {
            n: copy.deepcopy(texts[n].sampler.generator) for n in ahead if not texts[n].sampler.greedy
        }
        for round in range(max(counts, default=0)):
            began = time.perf_counter()
            going = [n for n in ahead if counts[n] > round and len(ahead[n].ids) < self.engine.max_context]
            if not going:
                break
            reads = [ahead[n].ids[len(texts[n].own.ids) :].tolist() for n in going]
            ends = (np.cumsum([len(ids) for ids in reads]) - 1).tolist()
            rows = self.engine.read(reads, [texts[n].own.state for n in going], ends)
            for n, ids, row in zip(going, reads, rows, strict=True):
                texts[n].own.ids += ids
                try:
                    processed = texts[n].sampler.process(mask_padding(row, self.vocab), ahead[n])
                except (UserError, OperationalError):  # nothing can be drawn from the draft's logits
                    del ahead[n]
                    continue
                drafts[n].append(texts[n].sampler.choose(processed, generators.get(n)))
                ahead[n].append(drafts[n][-1])
            if len(reads) == sum(map(len, reads)):  # and nothing that was read to catch up
                self._rounds.append(time.perf_counter() - began)
        return drafts

    def seconds(self, rounds: int) -> float:
        return rounds * statistics.median(self._rounds) if self._rounds else 0.0


class _Read:
    """What a draft model has read of a text: ids, and its state."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.state, self.ids = engine, engine.resume([]), list[int]()

    def rewind(self, ids: np.ndarray) -> int:
        """Forget drafts that were not accepted, and the last id, which is read again: how many are left."""
        most = min(len(self.ids), len(ids) - 1)
        if most and self.ids[max(0, most - 2 * MOST) : most] != ids[max(0, most - 2 * MOST) : most].tolist():
            differs = np.flatnonzero(np.asarray(self.ids[:most]) != ids[:most])
            most = int(differs[0])
        if most < len(self.ids):
            try:
                self.state.truncate(most)
                del self.ids[most:]
            except UserError:  # a window has dropped what the shorter text needs: it is read again
                self.state, self.ids = self.engine.resume([]), []
        return len(self.ids)


class StepTimes:
    """What steps take, by the number of tokens that they read, all of which decode.

    Steps with drafts are taken together where their numbers differ by less than a quarter. Each number alone
    is seen seldom, and the best of many would be the one whose few steps happened to be fast.
    """

    def __init__(self) -> None:
        self._plain: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=USUAL))
        self._drafted: dict[int, deque[tuple[int, float]]] = defaultdict(lambda: deque(maxlen=2 * USUAL))

    def record(self, tokens: int, seconds: float, drafted: int = 0) -> None:
        """A step of so many tokens, of which so many were drafted, took so long."""
        if drafted:
            self._drafted[round(4 * math.log2(tokens))].append((tokens, seconds))
        else:
            self._plain[tokens].append(seconds)

    def knows(self, tokens: int) -> bool:
        """Whether there was a step of so many without drafts."""
        return tokens in self._plain

    def seconds(self, base: int, most: int) -> list[float]:
        """What steps take of ``base`` tokens without drafts, and of up to ``most`` more: a straight line
        between measured ones, and past them the one from the first to the last.
        """
        counts, usual = [float(base)], [statistics.median(self._plain[base])]
        for _, steps in sorted(self._drafted.items()):
            tokens = statistics.fmean(count for count, _ in steps)
            if tokens > base:
                counts.append(tokens)
                usual.append(max(usual[0], statistics.median(seconds for _, seconds in steps)))
        found = np.interp(np.arange(base, base + most + 1), counts, usual)
        last = counts[-1]
        per_token = (usual[-1] - usual[0]) / (last - base) if last > base else ONE_MORE * usual[0]
        return (found + per_token * np.maximum(np.arange(base, base + most + 1) - last, 0)).tolist()


class DraftLengths:
    """How many tokens to draft of each text in a step: as many as give the most tokens a second."""

    def __init__(self) -> None:
        self.times = StepTimes()
        self._learned: dict[int, Counter[str]] = defaultdict(lambda: Counter(right=1, tried=2))
        self._steps = self._idle = 0  # steps, and those since drafting paid or was tried
        self._patience = PROBE  # idle steps before it is tried again

    def choose(
        self,
        texts: Sequence[DraftedText],
        rooms: Sequence[int],
        proposer: Proposer,
        others: Sequence[str] = (),
    ) -> list[int]:
        """The count of each text, of at most ``rooms``. ``others``: the clients of the step's other texts,
        which have no draft.
        """
        self._steps += 1
        base = len(texts) + len(others)
        if not self.times.knows(base) or self._steps % PROBE == 0:
            return [0] * len(texts)
        chances = [text.chance(self._prior(text.kind)) for text in texts]
        gains = sorted(
            (-(chance**depth), depth, n)
            for n, chance in enumerate(chances)
            for depth in range(1, min(rooms[n], MOST) + 1)
        )[:ROWS]
        times = self.times.seconds(base, len(gains))
        counts, best, fastest = [0] * len(texts), [0] * len(texts), base / times[0]
        written = float(base)
        clients = Counter([*(text.client for text in texts), *others])
        of_client = {client: float(count) for client, count in clients.items()}
        for more, (gain, depth, n) in enumerate(gains, start=1):
            counts[n], written = depth, written - gain
            of_client[texts[n].client] -= gain
            seconds = times[more] + proposer.seconds(max(counts))
            slower = seconds / times[0] * SLOWER
            fair = all(of_client[client] >= count * slower for client, count in clients.items())
            if fair and written / seconds > fastest:
                best, fastest = list(counts), written / seconds
        if any(best):
            self._idle, self._patience = 0, PROBE
            return best
        self._idle += 1
        if self._idle < self._patience:
            return best
        self._idle, self._patience = 0, min(2 * self._patience, SELDOM)
        return [min(TRIED, room) for room in rooms]

    def _prior(self, kind: int) -> float:
        learned = self._learned[kind]
        return learned["right"] / learned["tried"]

    def update(self, text: DraftedText, drafted: int, accepted: int) -> None:
        """Record how a draft fared."""
        text.update(drafted, accepted)
        learned = self._learned[text.kind]
        learned.update(right=accepted, tried=accepted + (accepted < drafted))
        if learned["tried"] > 16 * REMEMBERED:
            learned["right"], learned["tried"] = learned["right"] // 2, learned["tried"] // 2


class Drafting:
    """A proposer for the texts of one engine, and how much it drafts."""

    def __init__(self, proposer: Proposer, lengths: DraftLengths | None = None) -> None:
        self.proposer, self.lengths = proposer, lengths or DraftLengths()

    def drafts(
        self, texts: Sequence[DraftedText], rooms: Sequence[int], others: Sequence[str] = ()
    ) -> list[list[int]]:
        """The draft of each text, of at most so many tokens; ``others`` as `DraftLengths.choose` has them."""
        able = list[int]()
        for n, (text, room) in enumerate(zip(texts, rooms, strict=True)):
            kind = self.proposer.kind(text) if room > 0 else None
            if kind is not None:
                text.kind = kind
                able.append(n)
        drafts: list[list[int]] = [[] for _ in texts]
        if not able:
            return drafts
        chosen = [texts[n] for n in able]
        beside = [text.client for n, text in enumerate(texts) if n not in able]
        counts = self.lengths.choose(chosen, [rooms[n] for n in able], self.proposer, [*beside, *others])
        if any(counts):
            for n, draft in zip(able, self.proposer.propose(chosen, counts), strict=True):
                drafts[n] = draft
        return drafts


def check_rewinds(engine: Any) -> str | None:
    """Why an engine verifies no drafts of several texts; None where it does."""
    if not isinstance(engine, Rewinding):
        return "its logits depend on how a text is cut into readings: the runtime's do not (--engine runtime)"
    return engine.no_rewinding()
