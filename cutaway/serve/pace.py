"""How much of a prompt a step may read while others wait for their next token (chunked prefill,
2308.16369).
"""

from __future__ import annotations

STRETCH = 2.0  # a step that reads prompts too takes at most this many times one that does not
LEAST = 8  # ids of prompts a step reads in any case, so that none waits for ever
MEMORY = 0.2  # how fast the estimates follow what is measured


class Pace:
    """Learns from each step what a token of an answer and an id of a prompt take here."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._alone: dict[int, float] = {}  # seconds of a step by how many answers it continues
        self._an_id: float | None = None  # seconds that one more id of a prompt takes

    def saw(self, answers: int, ids: int, seconds: float) -> None:
        """A step continued so many answers and read so many ids of prompts."""
        if not ids:
            self._alone[answers] = _nearer(self._alone.get(answers), seconds)
        else:
            self._an_id = _nearer(self._an_id, max(0.0, seconds - self._usual(answers)) / ids)

    def allowed(self, answers: int) -> int:
        """How many ids of prompts the next step may read beside so many answers."""
        if not answers:
            return self.most
        if not self._an_id or not self._alone:
            return min(self.most, max(LEAST, 16))
        return min(self.most, max(LEAST, int((STRETCH - 1) * self._usual(answers) / self._an_id)))

    def _usual(self, answers: int) -> float:
        """Seconds of a step without prompts, by the nearest number of answers that was seen."""
        if not answers or not self._alone:
            return 0.0
        return self._alone[min(self._alone, key=lambda seen: abs(seen - answers))]


def _nearer(known: float | None, seconds: float) -> float:
    return seconds if known is None else known + MEMORY * (seconds - known)
