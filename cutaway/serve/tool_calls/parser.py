"""Calls of tools in an answer, read as it comes in the format of the model's own template (dialect.py).

Where arguments are one JSON object, a call is told as soon as its name and the object's bracket are there,
and the arguments as they are written, in whatever JSON the model makes of them. Where they stand one by one
between marks, what follows a value tells where it ends, so that calls are told at the answer's end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cutaway.serve.tool_calls.delimiters import loose
from cutaway.serve.tool_calls.tool_format import ToolFormat

Schemas = Mapping[str, Mapping[str, Any] | None]  # tools by name, with the schemas of their arguments
NAMED = re.compile(r"[a-zA-Z0-9_.-]+")


@dataclass(frozen=True)
class Call:
    """A call that an answer holds: the tool's name, and its arguments in JSON, where the model wrote that, as
    it did.
    """

    name: str
    arguments: str


@dataclass(frozen=True)
class CallStarted:
    """A call begins, of the tool of this name."""

    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """More of the arguments of the call that began last."""

    arguments: str


ParserEvent = str | CallStarted | ArgumentsDelta  # words are said as they are


def parse(format: ToolFormat, text: str, tools: Schemas) -> tuple[str, list[Call]]:
    """What a whole answer says, and the calls it makes."""
    listening = StreamingParser(format, tools)
    return gathered([*listening.push(text), *listening.finish()])


def gathered(heard: Sequence[ParserEvent]) -> tuple[str, list[Call]]:
    """All words, and all calls with their arguments."""
    said, calls = "", []
    for one in heard:
        if isinstance(one, str):
            said += one
        elif isinstance(one, CallStarted):
            calls.append(Call(one.name, ""))
        else:
            calls[-1] = Call(calls[-1].name, calls[-1].arguments + one.arguments)
    return said, calls


class StreamingParser:
    """An answer as it comes. However it is cut into pieces, what is heard adds up to the same.

    What may become a call is held back until it is one, or until the end, where it is words. White space
    around calls is not said: words after them begin a line.
    """

    def __init__(self, format: ToolFormat, tools: Schemas) -> None:
        self.format, self.tools = format, tools
        self.calls = 0  # that have begun
        self._text = ""
        self._told = 0  # how far the text was said, or read as calls
        self._marked = False  # whether a call's mark stands there, so that calls are read from here on
        self._writing: _Object | None = None  # the arguments that are being written
        self._spoke = False

    @property
    def whole(self) -> bool:
        """Whether it made calls, and the arguments of all came to their end."""
        return self.calls > 0 and self._writing is None

    def push(self, text: str) -> list[ParserEvent]:
        """More of the answer: what is heard by it."""
        self._text += text
        return self._heard(ended=False)

    def finish(self) -> list[ParserEvent]:
        """The rest, now that nothing follows."""
        heard = self._heard(ended=True)
        if self._writing is not None:
            return heard
        if not self.calls:
            return [*heard, *self._say(self._text[self._told :])]
        return [*heard, *self._say(self._after_calls())]

    def _heard(self, ended: bool) -> list[ParserEvent]:
        heard: list[ParserEvent] = []
        if not self._marked:
            words = self._text[self._told : self._end_of_words(ended)].rstrip()
            self._told += len(words)
            heard += self._say(words)
        if self._marked and self.format.arguments is None:
            heard += self._objects()
        elif self._marked and ended:
            heard += self._one_by_one()
        return heard

    def _say(self, words: str) -> list[ParserEvent]:
        self._spoke = self._spoke or words != ""
        return [words] if words else []

    # ---- words ---------------------------------------------------------------------------------------------

    def _end_of_words(self, ended: bool) -> int:
        """How far the text is surely said: not the mark of a call, nor what may become it. Sets ``_marked``
        where a call may begin there.
        """
        text, mark = self._text, self.format.mark
        if self.format.bare:  # only a whole answer is a call
            start = len(text) - len(text.lstrip())
            self._marked = text.startswith(mark, start)
            return start if mark.startswith(text[start : start + len(mark)]) else len(text)
        thought = _thought_end(self.format, text, ended)
        at = text.find(mark, thought or 0)
        if at >= 0:
            self._marked = thought is not None
            return at
        for length in range(min(len(mark) - 1, len(text) - self._told), 0, -1):
            if mark.startswith(text[-length:]):
                return len(text) - length
        return len(text)

    # ---- arguments in JSON ---------------------------------------------------------------------------------

    def _objects(self) -> Iterator[ParserEvent]:
        """What there is of calls and of their arguments."""
        while True:
            if self._writing is None:
                begun = self._beginning()
                if begun is None:
                    return
                name, self._told = begun
                self.calls, self._writing = self.calls + 1, _Object()
                yield CallStarted(name)
            start, end = self._told, self._writing.end(self._text, self._told)
            self._told = len(self._text) if end is None else end
            if self._told > start:
                yield ArgumentsDelta(self._text[start : self._told])
            if end is None:
                return
            self._writing = None

    def _beginning(self) -> tuple[str, int] | None:
        """The name of the next call, and where its arguments begin; None while it is not all there."""
        format, text = self.format, self._text
        if self.calls and format.between is None:
            return None
        lead = (format.tail, format.between or "") if self.calls else (format.opening,)
        begun = _called(format, text, _after(text, self._told, *lead))
        return begun if begun is not None and text.startswith("{", begun[1]) else None

    def _after_calls(self) -> str:
        """What is said after the last call and its marks, of which the answer may have been cut off."""
        format, text, place = self.format, self._text, self._told
        last = () if format.arguments is not None else (format.tail,)
        if last and _cut_off("".join((*last, format.closing)), text[place:]):
            return ""
        for constant in (*last, format.closing):
            over = _after(text, place, constant)
            place = place if over is None else over
        rest = text[place:].strip()
        return f"\n{rest}" if rest and self._spoke else rest

    # ---- arguments one by one ------------------------------------------------------------------------------

    def _one_by_one(self) -> list[ParserEvent]:
        """All calls, none if one of them is not whole."""
        format, text, heard = self.format, self._text, []
        place = _after(text, self._told, format.opening)
        while True:
            read = self._marked_call(place)
            if read is None:
                return []
            call, place = read
            heard += [CallStarted(call.name), ArgumentsDelta(call.arguments)]
            following = None if format.between is None else _after(text, place, format.between)
            if _after(text, following, format.head) is None:
                break
            place = following
        self.calls, self._told = len(heard) // 2, place
        return heard

    def _marked_call(self, place: int | None) -> tuple[Call, int] | None:
        """One call from its head on, and where it ends."""
        format, text = self.format, self._text
        begun = _called(format, text, place)
        if begun is None or format.arguments is None:
            return None
        name, start = begun
        read = format.arguments.read(text, start, name, self.tools.get(name), _loose(format.tail))
        return None if read is None else (Call(name, json.dumps(read[0], ensure_ascii=False)), read[1])


class _Object:
    """A JSON object that is being written. It ends with its bracket, whatever else is wrong with it."""

    def __init__(self) -> None:
        self._depth, self._quoted, self._escaped = 0, False, False

    def end(self, text: str, start: int) -> int | None:
        """Where it ends in a text that goes on from ``start``, None if not yet."""
        for at in range(start, len(text)):
            letter = text[at]
            if self._escaped:
                self._escaped = False
            elif letter == '"':
                self._quoted = not self._quoted
            elif self._quoted:
                self._escaped = letter == "\\"
            elif letter in "{[":
                self._depth += 1
            elif letter in "]}":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        return None


def _thought_end(format: ToolFormat, text: str, ended: bool) -> int | None:
    """Where the thought is over that an answer begins with, 0 where it has none or never ends; None while
    that is not known.
    """
    if format.thought is None:
        return 0
    begin, words = format.thought.begin, text.lstrip()
    if words.startswith(begin):
        at = text.find(format.thought.end)
        return at if at >= 0 else 0 if ended else None
    return None if begin.startswith(words) and not ended else 0


def _called(format: ToolFormat, text: str, place: int | None) -> tuple[str, int] | None:
    """The name of the call whose head stands at a place, and where its arguments begin."""
    start = _after(text, place, format.head)
    name = None if start is None else NAMED.match(text, start)
    begin = None if name is None else _after(text, name.end(), format.middle)
    return None if name is None or begin is None else (name[0], begin)


def _after(text: str, place: int | None, *constants: str) -> int | None:
    """Where constants of the format end, if they stand there: models are free with the space in them."""
    for constant in constants:
        found = None if place is None else _loose(constant).match(text, place)
        place = None if found is None else found.end()
    return place


def _cut_off(constant: str, text: str) -> bool:
    """Whether a text is what a constant of the format begins with."""
    return any(_loose(constant[:end]).fullmatch(text) for end in range(len(constant) + 1))


@lru_cache(maxsize=1024)
def _loose(constant: str) -> re.Pattern[str]:
    return re.compile(loose(constant))
