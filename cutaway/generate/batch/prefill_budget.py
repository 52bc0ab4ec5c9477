"""How much of a prompt a step may read while others wait for their next token (chunked prefill,
2308.16369).
"""

from __future__ import annotations

import statistics
from collections import defaultdict, deque

STRETCH = 1.4  # a step that reads prompts too takes this many times one that does not; chance comes on top
LEAST = 2  # ids of prompts a step reads in any case, so that none waits for ever; more by doubling
USUAL, LATEST = 15, 9  # steps whose median is what one takes alone, and what an id adds where reading is now


class PrefillBudget:
    """Learns from each step what a token of an answer and an id of a prompt take here.

    Medians, because a step that the machine held up says nothing about the next; and no leaps, because what
    was learned at the last prompt need not hold at this one.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._alone: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=USUAL))  # by answers
        self._an_id: deque[float] = deque(maxlen=LATEST)  # seconds that one more id of a prompt took
        self._reach = LEAST  # ids that the next step may read at most, whatever was learned

    def saw(self, answers: int, ids: int, seconds: float) -> None:
        """A step continued so many answers and read so many ids of prompts."""
        self._reach = LEAST
        if not ids:
            self._alone[answers].append(seconds)
        elif answers and self._alone:
            usual = self._usual(answers)
            self._reach = max(LEAST, 2 * ids if seconds <= STRETCH * usual else ids)
            self._an_id.append(max(0.0, seconds - usual) / ids)

    def allowed(self, answers: int) -> int:
        """How many ids of prompts the next step may read beside so many answers."""
        if not answers:
            return self.most
        an_id = statistics.median(self._an_id) if self._an_id else 0.0
        if not self._alone or an_id == 0:  # nothing is known, or steps that read took no longer than others
            return min(self.most, LEAST)
        room = max(LEAST, int((STRETCH - 1) * self._usual(answers) / an_id))
        return min(self.most, room, self._reach)

    def _usual(self, answers: int) -> float:
        """Seconds of a step without prompts, by the nearest number of answers that was seen."""
        return statistics.median(self._alone[min(self._alone, key=lambda seen: abs(seen - answers))])
