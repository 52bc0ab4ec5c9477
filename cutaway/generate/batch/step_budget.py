"""Choose what a scheduler's step reads: sequences that decode, and ids of prompts that wait.

A step reads the weights once for all sequences, and the keys and values of each besides: beside four texts of
six thousand ids a step of a small model takes seven times as long. Where several clients decode, the
sequences of one therefore read keys and values of as many positions a step, on average, as have the bytes of
the weights (`DecodeTurns`). Prompts are read in parts beside them, so that none waits long for another
(`PrefillBudget`), and each client has a fair part of a step (`fair_parts`).
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Protocol, TypeVar, runtime_checkable

STRETCH = 1.4  # a step with prefill may take this many times one without; random delays come on top
MOST_STRETCH = 5.0  # the same where many prompts wait
LEAST = 2  # prompt ids that a step reads in any case, so that none waits for ever; more by doubling
SHORT = 32  # prompt ids of the shortest step beside other clients: of fewer each takes twice as long
USUAL, LATEST = 15, 9  # steps whose median is the time of one without prefill, and the time of a prompt id


# ---- sequences that decode ---------------------------------------------------------------------------------


@runtime_checkable
class Decodes(Protocol):
    """A sequence that decodes: who asked for it, how long it is, and when it decoded last."""

    request: Any
    state: Any
    last_decode_step: int


Sequenced = TypeVar("Sequenced", bound=Decodes)


class DecodeTurns:
    """The turns of sequences that decode. ``positions``: how many have the bytes of the weights.

    Those that do not fit have their turn in the next steps. A client that is alone decodes all, and so does
    one that goes before all others by its priority.
    """

    def __init__(self, positions: int) -> None:
        self.positions = positions
        self._credit: dict[str, int] = {}  # positions whose keys and values a client may still read
        self._step = 0

    def choose(self, decoding: Sequence[Sequenced]) -> list[Sequenced]:
        """The sequences that decode in this step; one at least, if there are any."""
        self._step += 1
        clients: dict[str, list[Sequenced]] = defaultdict(list)
        for sequence in decoding:
            clients[sequence.request.client].append(sequence)
        priorities = {client: max(one.request.priority for one in own) for client, own in clients.items()}
        chosen: list[Sequenced] = []
        for client, own in clients.items():
            others = [priority for one, priority in priorities.items() if one != client]
            is_first = all(priority < priorities[client] for priority in others)
            chosen += own if is_first else self._within_credit(client, own)
        self._credit = {client: credit for client, credit in self._credit.items() if client in clients}
        if not chosen:  # no client has credit for a step of its long texts yet
            chosen = [min(own, key=_last_step) for own in clients.values()]
        for sequence in chosen:
            sequence.last_decode_step = self._step
        return [sequence for sequence in decoding if sequence.last_decode_step == self._step]

    def _within_credit(self, client: str, own: list[Sequenced]) -> list[Sequenced]:
        """The sequences of a client that its credit pays for. The credit grows with each step."""
        longest = max(one.state.length for one in own)
        credit = min(self._credit.get(client, 0), longest) + self.positions
        chosen: list[Sequenced] = []
        for sequence in sorted(own, key=_last_step):
            if sequence.state.length > credit:
                break  # the rest of the credit is saved for it
            credit -= sequence.state.length
            chosen.append(sequence)
        self._credit[client] = credit
        return chosen


def _last_step(sequence: Decodes) -> int:
    return sequence.last_decode_step


# ---- prompts that wait -------------------------------------------------------------------------------------


class PrefillBudget:
    """How many prompt ids a step may read beside sequences that decode, learned from each step's time.

    A step may take STRETCH times one without prefill; where several prompts wait, as many times as they
    are, up to MOST_STRETCH, so that those who ask together do not wait for many steps of the first.
    Medians, because one delayed step says nothing about the next; and growth by doubling, because what was
    learned at the last prompt need not hold at this one.

    While none decodes, a client that is alone has ``most``. Beside other clients a step reads SHORT ids, or
    as many as MOST_STRETCH times a step without prefill allows, because a prompt that arrives waits for the
    step under way.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._decode_seconds: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=USUAL))
        self._id_seconds: deque[float] = deque(maxlen=LATEST)  # for one more prompt id
        self._reach = LEAST  # the limit of the next step, whatever was learned
        # of steps that decoded none: their prompt ids, and the seconds that these took
        self._prefills: deque[tuple[int, float]] = deque(maxlen=LATEST)

    def record(self, decoding: int, prompt_ids: int, seconds: float, waiting: int = 1) -> None:
        """A step decoded so many sequences and read so many ids of the prompts that waited."""
        self._reach = LEAST
        if not prompt_ids:
            self._decode_seconds[decoding].append(seconds)
        elif not decoding:
            usual = self._usual(1) if self._decode_seconds else 0.0
            self._prefills.append((prompt_ids, max(0.0, seconds - usual)))
        elif self._decode_seconds:
            usual = self._usual(decoding)
            in_time = seconds <= _stretch(waiting) * usual
            self._reach = max(LEAST, 2 * prompt_ids if in_time else prompt_ids)
            self._id_seconds.append(max(0.0, seconds - usual) / prompt_ids)

    def allowed(self, decoding: int, waiting: int = 1, shared: bool = False) -> int:
        """How many ids of the prompts that wait the next step may read, beside so many that decode.

        ``shared``: whether more clients than one are here.
        """
        if not decoding:
            return min(self.most, self._beside_clients()) if shared else self.most
        more = _stretch(waiting) - 1
        per_id = statistics.median(self._id_seconds) if self._id_seconds else 0.0
        # an id costs no more than one of those that are decoded, which read all weights together
        least = max(LEAST, int(more * decoding))
        if not self._decode_seconds:
            return 0  # one step alone says what a step takes without prefill
        if per_id == 0:  # nothing known, or prefill took no measurable time
            return min(self.most, least)
        room = int(more * self._usual(decoding) / per_id)
        return min(self.most, max(least, min(room, self._reach)))

    def _beside_clients(self) -> int:
        """The ids that a step without decoding reads, where another client may soon wait for it."""
        ids, seconds = (sum(each) for each in zip(*self._prefills, strict=True)) if self._prefills else (0, 0)
        if not ids or not self._decode_seconds:
            return SHORT
        reach = max(SHORT, 2 * self._prefills[-1][0])
        room = (MOST_STRETCH - 1) * self._usual(1) * ids
        return reach if room >= reach * seconds else max(SHORT, int(room / seconds))

    def _usual(self, decoding: int) -> float:
        """Seconds of a step without prefill, by the nearest number of sequences that was seen."""
        nearest = min(self._decode_seconds, key=lambda seen: abs(seen - decoding))
        return statistics.median(self._decode_seconds[nearest])


def prompts_waiting(prompts: Counter[str], clients: Set[str]) -> int:
    """How many prompts wait beside clients that decode: of such a client all of its own, of others one each.

    Of several that decode, the fewest: none slows another's answers by asking for more.
    """
    return min((prompts[one] + len(prompts.keys() - {one}) for one in clients), default=prompts.total())


def _stretch(waiting: int) -> float:
    """The longest step while so many prompts wait, as a multiple of one without prefill."""
    return min(max(STRETCH, waiting), MOST_STRETCH)


def fair_parts(
    waiting: Mapping[str, Sequence[Any]], decoding: Iterable[str], most: int, longest: int
) -> dict[str, int]:
    """How many ids of each client's sequences that wait for prefill a step reads, beside the clients of those
    that decode; ``most`` in all, and ``longest`` of any step.

    Each id goes to the client with the highest priority, and of equals to the one with the fewest ids in this
    step, those of its sequences that decode among them (max-min fairness). A client that decodes none may
    have as many as the largest decodes, past ``most`` too, by which a step doubles at most. So a short prompt
    waits neither behind many of another client nor for many of their steps.
    """
    ids = Counter(decoding)
    share = min(max(ids.values(), default=0), longest)
    new = {client for client in waiting if client not in ids}
    if len(waiting) == 1:
        return {client: max(most, share) if new else most for client in waiting}
    parts = dict.fromkeys(waiting, 0)
    left = {client: sum(len(one.prompt) - one.state.length for one in own) for client, own in waiting.items()}
    order = {
        client: (-max(one.request.priority for one in own), max(one.last_prefill_step for one in own))
        for client, own in waiting.items()
    }
    for n in range(max(most, share)):
        clients = left if n < most else new & left.keys()
        if not clients:
            break
        client = min(clients, key=lambda one: (order[one][0], ids[one], order[one][1]))
        parts[client] += 1
        ids[client] += 1
        left[client] -= 1
        if not left[client]:
            del left[client]
    return parts
