"""Speculative decoding: a cheap proposer drafts tokens, and the model verifies them in one forward pass.

A pass over five tokens costs little more than over one, since the weights are read from memory once.
Proposers:

- `PromptLookup` (prompt lookup, after 2304.04487): the text's last few tokens occurred before, so what
  followed them then may follow now. It costs nothing, and is for texts that repeat themselves: code, lists.
- `DraftModel`: a smaller model of the same vocabulary drafts (2211.17192, 2302.01318).
- `HeadProposer` (draft_heads.py): a head on the model's own hidden states (MTP, EAGLE-3).

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
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.generate.engine import Rewinding
from cutaway.generate.sample import History, Sampler, mask_padding

MOST = 16  # drafted tokens of a text in a step
ROWS = 48  # drafted tokens of all texts in a step
LONGEST_MATCH, SHORTEST_MATCH = 16, 2  # tokens at the end that must have occurred before
USUAL = 8  # half of the latest steps of so many tokens, whose median is what such a step takes
KNOWN = 3  # steps without drafts, before some are drafted beside as many texts
PRIOR = 4.0  # drafts that what is known of other texts counts for
REMEMBERED = 64.0  # drafts of a text, after which older ones count half
ONE_MORE = 1 / 32  # of a step without drafts, that one more token is taken to cost before any was measured
PROBE = 32  # steps after which one is tried without drafts, or with, to see what it takes
STALE = 512  # steps after which it is not known any more what one with so many drafts takes
SELDOM = 1024  # steps after which drafts are tried that never pay
SPENT = 0.01  # of its time that a step without drafts may spend on looking for some, or on trying them
LONGEST_REST = 16  # steps in which none are looked for, where looking takes more
WORTH = 1.05  # times the pace without drafts, that drafting must promise: what is measured is a little wrong
LEAST_GAIN = 0.02  # of a token, below which one more drafted is none
TRIED = 2  # tokens that are drafted to see what a step takes
SHOWN = 32  # steps before drafts are tried again, in which a proposer is shown what it watches
SLOWER = 0.97  # of its pace without drafts, that the drafts of others leave to a client
CATCH_UP = 256  # ids of texts that a draft model reads in a step to know them


class DraftedText:
    """A text as drafting sees it: its tokens, its sampler, and what became of its drafts."""

    def __init__(self, history: History, sampler: Sampler, client: str = "") -> None:
        self.history, self.sampler, self.client = history, sampler, client
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
    """Drafts how texts go on. It proposes the same for the same text.

    ``watches``: the model's values that it is shown of all ids that are read (``see``).
    """

    watches: tuple[str, ...]

    def see(self, text: DraftedText, start: int, values: Mapping[str, np.ndarray]) -> None:
        """Called with activations that the model computed from position ``start`` on, drafts included."""
        ...

    def kind(self, text: DraftedText) -> int | None:
        """The kind of draft that can be proposed, for which acceptance is learned; None: there is none."""
        ...

    def propose(self, texts: Sequence[DraftedText], counts: Sequence[int]) -> list[list[int]]:
        """Draft at most so many tokens of each text."""
        ...

    def seconds(self, rounds: int) -> float:
        """Seconds of drafting so many tokens, before they are verified."""
        ...


class PromptLookup:
    """Drafts what followed an earlier occurrence of the last tokens: the longest match, the latest one."""

    watches: tuple[str, ...] = ()

    def see(self, text: DraftedText, start: int, values: Mapping[str, np.ndarray]) -> None:
        """It watches nothing."""

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
    """Find the latest earlier occurrence of the text's longest ending: the index after it, and its length."""
    ends, found = np.flatnonzero(ids[:-1] == ids[-1]), None
    for length in range(1, min(LONGEST_MATCH, len(ids) - 1) + 1):
        if not len(ends):
            break
        found = (int(ends[-1]) + 1, length)
        ends = ends[ends >= length]
        ends = ends[ids[ends - length] == ids[-1 - length]] if length < len(ids) - 1 else ends[:0]
    return found if found is not None and found[1] >= SHORTEST_MATCH else None


class Drawing:
    """Draws from logits as each text's own sampler will. ``vocab``: how many ids are tokens."""

    watches: tuple[str, ...] = ()

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab
        # seconds of the first token of each text, with which what is new in it is read, and of a further one
        self._first: deque[float] = deque(maxlen=USUAL)
        self._further: deque[float] = deque(maxlen=USUAL)

    def see(self, text: DraftedText, start: int, values: Mapping[str, np.ndarray]) -> None:
        """It watches nothing."""

    def read(self, texts: Sequence[DraftedText], ahead: Sequence[np.ndarray], round: int) -> np.ndarray:
        """The logits float32 [b v] of what comes after the ids of each text and of its draft so far."""
        raise NotImplementedError

    def propose(self, texts: Sequence[DraftedText], counts: Sequence[int]) -> list[list[int]]:
        drafts: list[list[int]] = [[] for _ in texts]
        ahead = {n: text.history.copy() for n, text in enumerate(texts) if counts[n]}
        generators = {
            n: copy.deepcopy(texts[n].sampler.generator) for n in ahead if not texts[n].sampler.greedy
        }
        for round in range(max(counts, default=0)):
            began = time.perf_counter()
            going = [n for n in ahead if counts[n] > round]
            if not going:
                break
            rows = self.read([texts[n] for n in going], [ahead[n].ids for n in going], round)
            for n, row in zip(going, rows, strict=True):
                try:
                    processed = texts[n].sampler.process(mask_padding(row, self.vocab), ahead[n])
                except (UserError, OperationalError):  # nothing can be drawn from the draft's logits
                    del ahead[n]
                    continue
                drafts[n].append(texts[n].sampler.choose(processed, generators.get(n)))
                ahead[n].append(drafts[n][-1])
            (self._further if round else self._first).append(time.perf_counter() - began)
        return drafts

    def seconds(self, rounds: int) -> float:
        if not self._first or not rounds:
            return 0.0
        first = statistics.median(self._first)
        return first + (rounds - 1) * (statistics.median(self._further) if self._further else first)


class DraftModel(Drawing):
    """A smaller model of the same vocabulary."""

    def __init__(self, engine: Any, vocab: int) -> None:
        super().__init__(vocab)
        self.engine = engine

    def kind(self, text: DraftedText) -> int | None:
        if len(text.history.ids) + MOST >= self.engine.max_context:
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

    def read(self, texts: Sequence[DraftedText], ahead: Sequence[np.ndarray], round: int) -> np.ndarray:
        reads = [ids[len(text.own.ids) :].tolist() for text, ids in zip(texts, ahead, strict=True)]
        ends = (np.cumsum([len(ids) for ids in reads]) - 1).tolist()
        rows = self.engine.read(reads, [text.own.state for text in texts], ends)
        for text, ids in zip(texts, reads, strict=True):
            text.own.ids += ids
        return rows


class _Read:
    """A draft model's ids and state of a text."""

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


class _Usual:
    """The latest steps of about so many tokens: their mean number, and the median of what they took."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=2 * USUAL)
        self.tokens = self.seconds = 0.0
        self.last = 0  # the number of the latest of them among all steps

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, tokens: int, seconds: float, number: int) -> None:
        self._steps.append((tokens, seconds))
        self.last = number
        taken = sorted(seconds for _, seconds in self._steps)
        self.tokens = sum(tokens for tokens, _ in self._steps) / len(taken)
        # of two the faster: what delayed the other would keep so many from being drafted again
        self.seconds = taken[0] if len(taken) == 2 else statistics.median(taken)


class StepTimes:
    """The time of decoding steps, by the number of tokens that they read.

    Steps with drafts are taken together where their numbers differ by less than a quarter. Each number alone
    is seen seldom, and the best of many would be the one whose few steps happened to be fast.
    """

    def __init__(self) -> None:
        self._plain: dict[int, _Usual] = defaultdict(_Usual)
        self._shown: dict[int, _Usual] = defaultdict(_Usual)  # that showed a proposer what it watches
        self._drafted: dict[int, _Usual] = defaultdict(_Usual)
        self._number = 0

    def record(self, tokens: int, seconds: float, drafted: int = 0, shown: bool = False) -> None:
        """A step of so many tokens, of which so many were drafted, took so long. ``shown``: a proposer was
        shown what it watches.
        """
        self._number += 1
        plain = self._shown if shown else self._plain
        usual = self._drafted[round(4 * math.log2(tokens))] if drafted else plain[tokens]
        usual.add(tokens, seconds, self._number)

    def knows(self, tokens: int) -> bool:
        """Whether there were enough steps of so many without drafts, and one of them lately."""
        steps = [usual[tokens] for usual in (self._plain, self._shown) if tokens in usual]
        return any(len(one) >= KNOWN and self._number - one.last < PROBE for one in steps)

    def without(self, tokens: int) -> float:
        """Seconds of a step of so many tokens without drafts, in the way that is faster; 0 where there was
        none.
        """
        steps = [usual[tokens] for usual in (self._plain, self._shown) if tokens in usual]
        return min((one.seconds for one in steps), default=0.0)

    def reach(self, base: int) -> int:
        """How many tokens may be drafted beside ``base`` others: twice as many as steps had, because what
        one takes is not known far past those that were measured.
        """
        seen = max((steps.tokens for steps in self._lately(base) if len(steps) > 1), default=base) - base
        return max(TRIED, base // 4, int(2 * seen))

    def seconds(self, base: int, most: int) -> list[float]:
        """What steps take of ``base`` tokens without drafts, and of up to ``most`` more: a straight line
        between measured ones, and past them the one from the first to the last.
        """
        counts, usual = [float(base)], [self.without(base)]
        per_token = ONE_MORE * usual[0]
        for steps in self._lately(base):
            line = usual[0] + per_token * (steps.tokens - base)
            counts.append(steps.tokens)
            # one step alone may have been delayed: it is not slower than others let expect
            usual.append(max(usual[0], steps.seconds if len(steps) > 1 else min(steps.seconds, line)))
            per_token = (usual[-1] - usual[0]) / (counts[-1] - base)
        at = np.arange(base, base + most + 1)
        return (np.interp(at, counts, usual) + per_token * np.maximum(at - counts[-1], 0)).tolist()

    def _lately(self, base: int) -> list[_Usual]:
        """The steps with drafts of more than ``base`` tokens, of which one was lately, by their tokens."""
        found = (steps for _, steps in sorted(self._drafted.items()) if steps.tokens > base)
        return [steps for steps in found if self._number - steps.last < STALE]


class DraftLengths:
    """How many tokens to draft of each text in a step: as many as give the most tokens a second."""

    def __init__(self) -> None:
        self.times = StepTimes()
        self._learned: dict[int, Counter[str]] = defaultdict(lambda: Counter(right=2, tried=4))
        self._idle = 0  # steps since drafting paid or was tried
        self._wait = PROBE  # idle steps before it is tried again

    @property
    def resting(self) -> bool:
        """Whether drafts were tried in vain, and will not be tried again soon."""
        return self._wait > PROBE and self._wait - self._idle > SHOWN

    def rested(self) -> None:
        """Note a step for which none were looked for."""
        self._idle += 1

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
        base = len(texts) + len(others)
        if not self.times.knows(base):
            return [0] * len(texts)
        chances = [text.chance(self._prior(text.kind)) for text in texts]
        gains = _gains(chances, rooms)[: min(ROWS, self.times.reach(base))]
        times = self.times.seconds(base, max(len(gains), TRIED, base // 4))
        # with all of them accepted for nothing it would still not pay
        hopeless = base - sum(gain for gain, _, _ in gains) <= base * WORTH
        best = None if hopeless else self._best(texts, gains, times, proposer, others)
        if best is not None:
            self._idle, self._wait = 0, PROBE
            return best
        self._idle += 1
        if self._idle < self._wait:
            return [0] * len(texts)
        return self._tried(chances, rooms, times, proposer)

    def _best(
        self,
        texts: Sequence[DraftedText],
        gains: Sequence[tuple[float, int, int]],
        times: Sequence[float],
        proposer: Proposer,
        others: Sequence[str],
    ) -> list[int] | None:
        """The counts with the most tokens a second; None where too few more are written than without."""
        counts, best, base = [0] * len(texts), None, len(texts) + len(others)
        fastest, written, deepest, ahead = base / times[0] * WORTH, float(base), 0, 0.0
        clients = Counter([*(text.client for text in texts), *others])
        of_client = {client: float(count) for client, count in clients.items()}
        for more, (gain, depth, n) in enumerate(gains, start=1):
            counts[n], written = depth, written - gain
            of_client[texts[n].client] -= gain
            if depth > deepest:
                deepest, ahead = depth, proposer.seconds(depth)
            seconds = times[more] + ahead
            if written / seconds <= fastest:
                continue
            slower = seconds / times[0] * SLOWER
            if len(clients) == 1 or all(of_client[one] >= count * slower for one, count in clients.items()):
                best, fastest = list(counts), written / seconds
        return best

    def _tried(
        self, chances: Sequence[float], rooms: Sequence[int], times: Sequence[float], proposer: Proposer
    ) -> list[int]:
        """A few tokens of the likeliest texts, to see what becomes of them: the more seldom the more that
        costs, and the more often it was in vain.
        """
        counts, rows = [0] * len(chances), len(times) - 1
        for n in sorted(range(len(chances)), key=lambda n: -chances[n]):
            counts[n] = min(TRIED, rooms[n], max(0, rows - sum(counts)))
        cost = (times[sum(counts)] - times[0] + proposer.seconds(max(counts))) / times[0]
        self._idle, self._wait = 0, min(max(2 * self._wait, int(cost / SPENT)), SELDOM)
        return counts

    def _prior(self, kind: int) -> float:
        learned = self._learned[kind]
        return learned["right"] / learned["tried"]

    def rest(self, looked: float, texts: int) -> int:
        """The steps of so many texts in which no draft is looked for, after that took so long in vain."""
        usual = self.times.without(texts)
        return min(int(looked / (SPENT * usual)), LONGEST_REST) if usual else 0

    def update(self, text: DraftedText, drafted: int, accepted: int) -> None:
        """Record how a draft fared."""
        text.update(drafted, accepted)
        learned = self._learned[text.kind]
        learned["right"] += accepted
        learned["tried"] += accepted + (accepted < drafted)
        if learned["tried"] > 16 * REMEMBERED:
            learned["right"], learned["tried"] = learned["right"] // 2, learned["tried"] // 2


def _gains(chances: Sequence[float], rooms: Sequence[int]) -> list[tuple[float, int, int]]:
    """How likely each token of a draft counts, negative, with its place there and its text; best first."""
    gains = list[tuple[float, int, int]]()
    for n, chance in enumerate(chances):
        gain = 1.0
        for depth in range(1, min(rooms[n], MOST) + 1):
            gain *= chance
            if gain < LEAST_GAIN:
                break
            gains.append((-gain, depth, n))
    gains.sort()
    return gains


class Drafting:
    """A proposer for the texts of one engine, and how much it drafts."""

    def __init__(self, proposer: Proposer, lengths: DraftLengths | None = None) -> None:
        self.proposer, self.lengths = proposer, lengths or DraftLengths()
        self._rest = 0  # steps for which no draft is looked for

    def watches(self) -> tuple[str, ...]:
        """What the proposer is shown of the next step. None while drafts do not pay: what a head was not
        shown it does without, and showing it takes a tenth of a small model's step.
        """
        return () if self.lengths.resting else self.proposer.watches

    def drafts(
        self, texts: Sequence[DraftedText], rooms: Sequence[int], others: Sequence[str] = ()
    ) -> list[list[int]]:
        """The draft of each text, of at most so many tokens; ``others`` as `DraftLengths.choose` has them."""
        drafts: list[list[int]] = [[] for _ in texts]
        if self.proposer.watches and self.lengths.resting:
            self.lengths.rested()
            return drafts
        if self._rest:
            self._rest -= 1
            return drafts
        began = time.perf_counter()
        able = list[int]()
        for n, (text, room) in enumerate(zip(texts, rooms, strict=True)):
            kind = self.proposer.kind(text) if room > 0 else None
            if kind is not None:
                text.kind = kind
                able.append(n)
        chosen = [texts[n] for n in able]
        beside = [text.client for n, text in enumerate(texts) if n not in able]
        counts = (
            self.lengths.choose(chosen, [rooms[n] for n in able], self.proposer, [*beside, *others])
            if able
            else []
        )
        if any(counts):
            for n, draft in zip(able, self.proposer.propose(chosen, counts), strict=True):
                drafts[n] = draft
        else:
            self._rest = self.lengths.rest(time.perf_counter() - began, len(texts) + len(others))
        return drafts


def check_rewinds(engine: Any) -> str | None:
    """Why an engine verifies no drafts of several texts; None where it does."""
    if not isinstance(engine, Rewinding):
        return "its logits depend on how a text is cut into readings: the runtime's do not (--engine runtime)"
    return None
