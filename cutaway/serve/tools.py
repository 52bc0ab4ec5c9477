"""Calls of tools in an answer: read in the format of the model's own template (dialect.py), whole or as it
comes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cutaway.serve.dialect import Dialect
from cutaway.serve.marks import loose

Schemas = Mapping[str, Mapping[str, Any] | None]  # tools by name, with the schemas of their arguments
NAMED = re.compile(r"[a-zA-Z0-9_.-]+")


@dataclass(frozen=True)
class Call:
    """A call that an answer holds: the tool's name, and its arguments in JSON, where the model wrote that, as
    it did.
    """

    name: str
    arguments: str


def parse(format: Dialect, text: str, tools: Schemas) -> tuple[str, list[Call]]:
    """What an answer says, and the calls it makes. Where a call is not whole, the whole answer is said."""
    at = text.find(format.mark, _thought_of(format, text))
    if at < 0 or (format.bare and text[:at].strip()):
        return text, []
    calls, place = [], _after(format.opening, text, at)
    while place is not None:
        made = _call(format, text, place, tools)
        if made is None:
            return text, []
        call, place = made
        calls.append(call)
        if format.between is None:
            break
        following = _after(format.between, text, place)
        if following is None or _after(format.head, text, following) is None:
            break
        place = following
    if place is None:
        return text, []
    place = _after(format.closing, text, place) or place
    return (text[:at].rstrip() + text[place:].rstrip()).strip("\n"), calls


def _thought_of(format: Dialect, text: str) -> int:
    """Where the thought is over that an answer begins with, 0 where it has none or never ends."""
    if format.thought is None or not text.lstrip().startswith(format.thought.begin):
        return 0
    return max(0, text.find(format.thought.end))


def _call(format: Dialect, text: str, place: int, tools: Schemas) -> tuple[Call, int] | None:
    """One call from its head on, and where it ends."""
    start = _after(format.head, text, place)
    name = None if start is None else NAMED.match(text, start)
    begin = None if name is None else _after(format.middle, text, name.end())
    if name is None or begin is None:
        return None
    if format.arguments is not None:
        end = _loose(format.tail)
        read = format.arguments.read(text, begin, name[0], tools.get(name[0]), end)
        return None if read is None else (Call(name[0], json.dumps(read[0], ensure_ascii=False)), read[1])
    try:
        arguments, stop = json.JSONDecoder().raw_decode(text, begin)
    except (ValueError, RecursionError):
        return None
    over = _after(format.tail, text, stop)
    if not isinstance(arguments, dict) or over is None:
        return None
    return Call(name[0], text[begin:stop]), over


def _after(constant: str, text: str, place: int) -> int | None:
    """Where a constant of the format ends, if it stands there: models are free with the space in it."""
    found = _loose(constant).match(text, place)
    return None if found is None else found.end()


@lru_cache(maxsize=256)
def _loose(constant: str) -> re.Pattern[str]:
    return re.compile(loose(constant))


class Listening:
    """An answer as it comes: what is said is passed on, what may be a call is held back until the end."""

    def __init__(self, format: Dialect, tools: Schemas) -> None:
        self.format, self.tools = format, tools
        self._text, self._told, self._held = "", 0, False

    def push(self, text: str) -> str:
        """More of the answer; returns what of it is said."""
        self._text += text
        if self._held:
            return ""
        end = self._bare_end() if self.format.bare else self._end()
        safe, self._told = self._text[self._told : end], end
        return safe

    def finish(self) -> tuple[str, list[Call]]:
        """The rest of what is said, and the calls."""
        said, calls = parse(self.format, self._text, self.tools)
        told = self._text[: self._told]
        return said[len(told.rstrip() if calls else told) :], calls

    def _end(self) -> int:
        """How far the text is surely said: not the mark of a call, nor what may become it."""
        mark = self.format.mark
        at = self._text.find(mark, max(0, self._told - len(mark)))
        if at >= 0:
            self._held = True
            return at
        for length in range(min(len(mark) - 1, len(self._text) - self._told), 0, -1):
            if mark.startswith(self._text[-length:]):
                return len(self._text) - length
        return len(self._text)

    def _bare_end(self) -> int:
        """The same where only a whole answer is a call."""
        words = self._text.lstrip()
        if not words or words.startswith(self.format.mark[0]):
            self._held = bool(words)
            return 0
        return len(self._text)
