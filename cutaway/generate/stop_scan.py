"""Stop strings in a text that comes piece by piece."""

from __future__ import annotations

from collections.abc import Sequence


class StopScan:
    """Text in, text that is safe to show out, until a stop string is complete.

    The first stop to be complete counts, of those complete at the same character the one that began first:
    the cut does not depend on how the text was divided into tokens.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Add text; returns what can no longer belong to a stop, and sets `found` once there is one."""
        self._held += text
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if not ends:
            return self._release(len(self._held) - self._pending())
        _, at, self.found = min(ends)
        safe, self._held = self._held[:at], ""
        return safe

    def finish(self, rest: str = "") -> str:
        """The text that was held back, with the ``rest``; nothing after a stop."""
        safe = "" if self.found is not None else self.push(rest)
        return safe + self._release(len(self._held))

    def _pending(self) -> int:
        """The number of characters at the end that begin a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0

    def _release(self, length: int) -> str:
        safe, self._held = self._held[:length], self._held[length:]
        return safe
