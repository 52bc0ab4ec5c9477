"""A log that requests cannot flood, and that cannot stop a server: bounded lines, written by a thread.

At most so many lines a minute, of bounded length, without control characters; as text or as JSON, one object
a line. What the thread cannot write in time is left out, so a standard error that is full or that is not read
delays no answer.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import io
import json
import logging
import queue
import re
import sys
import time
import traceback
from collections.abc import Iterator
from logging.handlers import QueueHandler, QueueListener
from typing import Any, Literal

from cutaway.errors import OperationalError, UserError, visible

RECORDS, SECONDS = 60, 60.0  # at most so many records in so many seconds
REQUESTS = 6000  # of those that tell of a request
QUEUED = 10_000  # records that wait to be written
CHARACTERS = 2000  # of a record; of a longer one its beginning and its end
FRAMES = 6  # of a traceback, the innermost
PROMPTS = "cutaway.serve.prompts"  # what --log-prompts asks for, written whole
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


class BoundedHandler(logging.StreamHandler):
    """Writes records to standard error; says how many it left out."""

    def __init__(self, form: LogFormat = "text") -> None:
        super().__init__(sys.stderr)
        self.setFormatter(_Json() if form == "json" else _Formatter())
        self._since, self._counts = 0.0, {True: 0, False: 0}  # of lines about requests, and of others

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, unless too many came in the last minute."""
        if record.name == PROMPTS or self._has_room(hasattr(record, "fields")):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Report a record that could not be written, where there is still a standard error to report to."""
        if not self.stream.closed and not isinstance(sys.stderr, LoggedStream):
            super().handleError(record)

    def _has_room(self, request: bool) -> bool:
        now = time.monotonic()
        if now - self._since >= SECONDS:
            left_out = max(0, self._counts[False] - RECORDS) + max(0, self._counts[True] - REQUESTS)
            self._since, self._counts = now, {True: 0, False: 0}
            if left_out > 0:
                text = f"{left_out} more lines were left out of the log"
                super().emit(logging.makeLogRecord({"msg": text, "levelname": "WARNING"}))
        self._counts[request] += 1
        return self._counts[request] <= (REQUESTS if request else RECORDS)


class _Formatter(logging.Formatter):
    """Time, level and message; of a request its fields."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == PROMPTS:
            return record.getMessage()
        fields = [f"{name}={_value(value)}" for name, value in getattr(record, "fields", {}).items()]
        head = f"{_utc(record)} {record.levelname.lower()}"
        return _short(visible(" ".join([head, super().format(record), *fields])))

    def formatException(self, ei: Any) -> str:
        return "".join(traceback.format_exception(*ei, limit=-FRAMES)).rstrip()


def _value(value: Any) -> str:
    """A field's value in logfmt: in quotes where it could be read as more fields, or has no printable end."""
    text = str(value)
    return text if text.isprintable() and not re.search(r'[\s="\\]', text) else json.dumps(text)


class _Json(_Formatter):
    """The same as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        shown = {"time": _utc(record), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.name != PROMPTS:
            shown["message"] = _short(visible(shown["message"]))
        if record.exc_info:
            shown["exception"] = _short(visible(self.formatException(record.exc_info)))
        return json.dumps(shown | getattr(record, "fields", {}))


def _utc(record: logging.LogRecord) -> str:
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{at}.{int(record.msecs):03d}Z"


def _short(text: str) -> str:
    if len(text) <= CHARACTERS:
        return text
    half = CHARACTERS // 2
    return f"{text[:half]}\n... {len(text) - CHARACTERS:,} characters left out ...\n{text[-half:]}"


class _Waiting(QueueHandler):
    """Hands records to the thread that writes, as they are; what it cannot take is left out."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def install(log_prompts: bool, form: LogFormat = "text", level: LogLevel = "info") -> None:
    """Send all records, uvicorn's too, to one bounded handler on a thread of its own."""
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(QUEUED)
    listener = QueueListener(waiting, BoundedHandler(form))
    listener.start()
    atexit.register(flush)
    logging.basicConfig(level=logging.WARNING, handlers=[_Waiting(waiting)], force=True)
    set_level(level)
    logging.getLogger(PROMPTS).setLevel(logging.INFO if log_prompts else logging.WARNING)


def flush() -> None:
    """Wait until the last lines are written, unless no process reads them."""
    ends = time.monotonic() + 1.0
    for handler in logging.getLogger().handlers:
        waiting: Any = handler.queue if isinstance(handler, _Waiting) else None
        while waiting and waiting.unfinished_tasks and time.monotonic() < ends:
            time.sleep(0.01)


class LoggedStream(io.TextIOBase):
    """A standard error whose lines are warnings of the log: where that is JSON, so is all that is written."""

    def write(self, text: str, /) -> int:
        for line in filter(str.strip, text.splitlines()):
            logging.getLogger("cutaway.serve").warning("%s", line)
        return len(text)

    def isatty(self) -> bool:
        return False


@contextlib.contextmanager
def log_alone() -> Iterator[None]:
    """Let all that is written to standard error be the log's, and what ends the server too."""
    log = logging.getLogger("cutaway.serve")
    with contextlib.redirect_stderr(LoggedStream()):
        try:
            yield
        except (UserError, OperationalError) as error:
            log.error("%s", error)
            raise SystemExit(2 if isinstance(error, UserError) else 1) from None
        except Exception:
            log.exception("The server failed")
            raise SystemExit(1) from None
        finally:
            flush()


def set_level(level: LogLevel) -> None:
    """Log Cutaway's own records from this level up; other libraries' from warnings up."""
    logging.getLogger("cutaway.serve").setLevel(level.upper())


def quiet_loop(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The event loop's own errors in one line: a lack of descriptors comes with every connection."""
    error = context.get("exception")
    logging.getLogger("cutaway.serve").error("%s: %r", context.get("message", "The event loop failed"), error)
