"""Events on their way from the scheduler's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


class LoopBridge:
    """Events on their way to the queues of one event loop, which is woken once for all of a step: each waking
    hands Python's lock over, and the thread that wakes waits to have it back.

    ``put`` and ``send`` may be called by any thread, ``deliver`` by the loop's own.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[tuple[asyncio.Queue[Any], Any]] = deque()

    def put(self, queue: asyncio.Queue[Any], event: Any) -> None:
        """Add an event for this queue; it is delivered after the next ``send``."""
        self._waiting.append((queue, event))

    def send(self) -> None:
        """Have the loop deliver what waits."""
        if self._waiting and self._loop is not None:
            self._loop.call_soon_threadsafe(self.deliver)

    def deliver(self) -> None:
        """Put what waits into its queues, in order."""
        self._loop = asyncio.get_running_loop()
        while self._waiting:
            queue, event = self._waiting.popleft()
            queue.put_nowait(event)
