"""How many prompt ids a step of the scheduler reads, so that none waits long for it."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Set

STRETCH = 1.4  # a step with prefill may take this many times one without; random delays come on top
MOST_STRETCH = 5.0  # the same where many prompts wait
LEAST = 2  # prompt ids that a step reads in any case, so that none waits for ever; more by doubling
SHORT = 32  # prompt ids of the shortest step beside other clients: of fewer each takes twice as long
USUAL, LATEST = 15, 9  # steps whose median is the time of one without prefill, and the time of a prompt id


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
        self._id_seconds: deque[float] = deque(maxlen=LATEST)  # that one more prompt id took
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
        """How many ids a step reads that decodes none, where another client may soon wait for it."""
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
    """How many times one without prefill a step may take while so many prompts wait."""
    return min(max(STRETCH, waiting), MOST_STRETCH)
