"""SIGTERM and Ctrl-C let a step end and a checkpoint be written; a second signal ends the run at once.

Under torchrun it does not: Slurm and torchrun send SIGTERM both, and torchrun ends by SIGKILL what takes too
long.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SignalHandler:
    """While it is entered, ``received`` is the signal that came, or None.

    ``stopping`` is called at the first one, between two operations of the main thread, which may hold a lock.
    """

    def __init__(self, stopping: Callable[[], None] = lambda: None) -> None:
        self._stopping = stopping
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalHandler:
        if threading.current_thread() is threading.main_thread():  # elsewhere no handler can be set
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and "RANK" not in os.environ:
            exit_by_signal(number)
        if self.received is None:
            self.received = number
            self._stopping()


def exit_by_signal(number: int) -> None:
    """Ends the program as the signal would: Ctrl-C as such, SIGTERM with the usual exit code."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
