"""From the model's thread to the event loop: events wait until the model's thread lets go of Python's lock
anyway, and then wake the event loop once for all of a step. Each waking hands the lock over, and the thread
that wakes waits to have it back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any


class LoopBridge:
    """Events on their way to the queues of one event loop. ``put`` and ``send`` may be called by any thread,
    ``deliver`` by the loop's own.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[tuple[asyncio.Queue[Any], Any]] = deque()

    def put(self, queue: asyncio.Queue[Any], event: Any) -> None:
        """This event is for this queue, as soon as all are sent."""
        self._waiting.append((queue, event))

    def send(self) -> None:
        """Has the loop deliver what waits."""
        if self._waiting and self._loop is not None:
            self._loop.call_soon_threadsafe(self.deliver)

    def deliver(self) -> None:
        """Puts what waits into its queues, in the order in which it came."""
        self._loop = asyncio.get_running_loop()
        while self._waiting:
            queue, event = self._waiting.popleft()
            queue.put_nowait(event)
