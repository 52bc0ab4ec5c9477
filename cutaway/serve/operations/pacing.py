"""How fast the requests of one client are taken up while another client is there.

A request costs the event loop time before it is known to be good or bad: its head, its body, the refusal. A
client that sends thousands a second, each refused at once, would hold up the streams of the others. So a
client's requests have turns: so many a second, and so many bytes of bodies, after a short burst. A request
that comes sooner waits, before its body is read, which holds back its sender. A client that is alone is never
held back.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cutaway.serve.api_error import APIError

ALONE = 1.0  # seconds after which a client without a request under way is gone


@dataclass
class Pace:
    """The turns of each client's requests: ``requests`` and ``bytes`` a second, after a burst of ``burst``
    seconds' worth; who would wait longer than ``most`` seconds is refused. The event loop's own.
    """

    requests: float = 100.0
    bytes: float = 16e6
    burst: float = 0.2
    most: float = 5.0
    _next: dict[str, float] = field(default_factory=dict)  # when a client's next request has its turn
    _seen: dict[str, float] = field(default_factory=dict)  # when a client was last there, in order
    _present: Counter[str] = field(default_factory=Counter)  # its requests under way

    @contextmanager
    def present(self, client: str) -> Iterator[None]:
        """A request of the client is under way."""
        self._present[client] += 1
        try:
            yield
        finally:
            self._present[client] -= 1
            self._note(client)

    async def turn(self, client: str, size: int) -> None:
        """Wait for a request's turn, whose body has ``size`` bytes. APIError where that takes too long."""
        seconds = self.wait(client, size)
        if seconds:
            await asyncio.sleep(min(seconds, self.most))
        if seconds > self.most:
            raise APIError(
                429,
                "This client asks faster than it can be answered beside others: send fewer at a time",
                type="rate_limit_error",
                code="too_fast",
                retry_after=math.ceil(seconds - self.most),
            )

    def wait(self, client: str, size: int) -> float:
        """Seconds until a request's turn, which is then taken: 0 for a client that is alone."""
        now = self._note(client)
        if len(self._seen) == 1:
            self._next.pop(client, None)
            return 0.0
        turn = max(now - self.burst, self._next.get(client, 0.0))
        if turn - now <= self.most:  # one that is refused takes no turn
            self._next[client] = turn + 1 / self.requests + size / self.bytes
        return max(0.0, turn - now)

    def _note(self, client: str) -> float:
        """A client is there, now; those are forgotten that are gone."""
        now = time.monotonic()
        self._seen.pop(client, None)
        self._seen[client] = now
        while now - self._seen[first := next(iter(self._seen))] > ALONE:
            del self._seen[first]
            if self._present[first]:
                self._seen[first] = now
            else:
                self._next.pop(first, None)
                del self._present[first]
        return now
