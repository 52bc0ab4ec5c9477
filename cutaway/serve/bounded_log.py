"""A log that requests cannot flood: a bounded number of bounded lines a minute, no control characters."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import traceback
from typing import Any

from cutaway.errors import visible

RECORDS, SECONDS = 60, 60.0  # at most so many records in so many seconds
CHARACTERS = 2000  # of a record; of a longer one its beginning and its end
FRAMES = 6  # of a traceback, the innermost
PROMPTS = "cutaway.serve.prompts"  # what --log-prompts asks for, written whole


class BoundedHandler(logging.StreamHandler):
    """Writes records to standard error; says how many it left out."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(_Formatter("%(message)s"))
        self._since, self._count = 0.0, 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless too many came in the last minute."""
        if record.name == PROMPTS or self._has_room():
            super().emit(record)

    def _has_room(self) -> bool:
        now = time.monotonic()
        if now - self._since >= SECONDS:
            left_out, self._since, self._count = self._count - RECORDS, now, 0
            if left_out > 0:
                self.stream.write(f"{left_out} more lines were left out of the log\n")
        self._count += 1
        return self._count <= RECORDS


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if record.name == PROMPTS:
            return record.getMessage()
        text = visible(super().format(record))
        if len(text) > CHARACTERS:
            half = CHARACTERS // 2
            text = f"{text[:half]}\n... {len(text) - CHARACTERS:,} characters left out ...\n{text[-half:]}"
        return text

    def formatException(self, ei: Any) -> str:
        return "".join(traceback.format_exception(*ei, limit=-FRAMES)).rstrip()


def install(log_prompts: bool) -> None:
    """Send all records, uvicorn's too, to one bounded handler."""
    logging.basicConfig(level=logging.WARNING, handlers=[BoundedHandler()], force=True)
    logging.getLogger(PROMPTS).setLevel(logging.INFO if log_prompts else logging.WARNING)


def quiet_loop(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's own errors in one line: a lack of descriptors comes with every connection."""
    error = context.get("exception")
    logging.getLogger("cutaway.serve").error("%s: %r", context.get("message", "The event loop failed"), error)
