"""A streaming parser of tool calls, in the format of the model's own template (tool_format.py).

Where arguments are one JSON object, a call begins as soon as its name and the object's bracket are there, and
its arguments are passed on as the model writes them. Where each argument has its own tags, what follows a
value decides where it ends, so calls are found at the answer's end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cutaway.generate.tool_calls.delimiters import loose
from cutaway.generate.tool_calls.tool_format import ToolFormat

ToolSchemas = Mapping[str, Mapping[str, Any] | None]  # tools by name, with the schemas of their arguments
CALL_NAME = re.compile(r"[a-zA-Z0-9_.-]+")


@dataclass(frozen=True)
class Call:
    """A call that an answer holds: the tool's name, and its arguments in JSON, where the model wrote that, as
    it did.
    """

    name: str
    arguments: str

    @property
    def object(self) -> dict[str, Any]:
        """The arguments; those that were cut off, or are no object, as one text."""
        try:
            value = json.loads(self.arguments)
        except (ValueError, RecursionError):
            value = None
        return value if isinstance(value, dict) else {"arguments": self.arguments}


@dataclass(frozen=True)
class CallStarted:
    """A call begins, of the tool of this name."""

    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """More of the arguments of the call that began last."""

    arguments: str


ParserEvent = str | CallStarted | ArgumentsDelta  # content is a string


def parse(format: ToolFormat, text: str, tools: ToolSchemas) -> tuple[str, list[Call]]:
    """The content of a whole answer, and its calls."""
    reader = StreamingParser(format, tools)
    return collect([*reader.push(text), *reader.finish()])


def collect(events: Sequence[ParserEvent]) -> tuple[str, list[Call]]:
    """All content, and all calls with their arguments."""
    content, calls = "", []
    for one in events:
        if isinstance(one, str):
            content += one
        elif isinstance(one, CallStarted):
            calls.append(Call(one.name, ""))
        else:
            calls[-1] = Call(calls[-1].name, calls[-1].arguments + one.arguments)
    return content, calls


class StreamingParser:
    """Text in, events out. However the answer is cut into pieces, its events add up to the same.

    What may become a call is held back until it is one, or until the end, where it is content. White space
    around calls is dropped: content after them begins a line.
    """

    def __init__(self, format: ToolFormat, tools: ToolSchemas) -> None:
        self.format, self.tools = format, tools
        self.calls = 0  # begun
        self._text = ""
        self._done = 0  # how far the text was passed on
        self._triggered = False  # whether calls are read from here on
        self._arguments: _JsonObject | None = None  # of the call that is not finished
        self._has_content = False

    @property
    def complete(self) -> bool:
        """Whether there were calls, and the arguments of all are finished."""
        return self.calls > 0 and self._arguments is None

    def push(self, text: str) -> list[ParserEvent]:
        """Add text: the events that it brings."""
        self._text += text
        return self._read(ended=False)

    def finish(self) -> list[ParserEvent]:
        """The rest, now that nothing follows."""
        events = self._read(ended=True)
        if self._arguments is not None:
            return events
        if not self.calls:
            return [*events, *self._content(self._text[self._done :])]
        return [*events, *self._content(self._after_calls())]

    def _read(self, ended: bool) -> list[ParserEvent]:
        events: list[ParserEvent] = []
        if not self._triggered:
            words = self._text[self._done : self._content_end(ended)].rstrip()
            self._done += len(words)
            events += self._content(words)
        if self._triggered and self.format.arguments is None:
            events += self._objects()
        elif self._triggered and ended:
            events += self._tagged_calls()
        return events

    def _content(self, words: str) -> list[ParserEvent]:
        self._has_content = self._has_content or words != ""
        return [words] if words else []

    # ---- content -------------------------------------------------------------------------------------------

    def _content_end(self, ended: bool) -> int:
        """How far the text is surely content: neither a call's trigger nor the beginning of one. Sets
        ``_triggered`` where a call may begin there.
        """
        text, trigger = self._text, self.format.trigger
        if self.format.untagged:  # only a whole answer is a call
            start = len(text) - len(text.lstrip())
            self._triggered = text.startswith(trigger, start)
            return start if trigger.startswith(text[start : start + len(trigger)]) else len(text)
        reasoning = _reasoning_end(self.format, text, ended)
        at = text.find(trigger, reasoning or 0)
        if at >= 0:
            self._triggered = reasoning is not None
            return at
        for length in range(min(len(trigger) - 1, len(text) - self._done), 0, -1):
            if trigger.startswith(text[-length:]):
                return len(text) - length
        return len(text)

    # ---- arguments in JSON ---------------------------------------------------------------------------------

    def _objects(self) -> Iterator[ParserEvent]:
        """Calls and their arguments as far as they are written."""
        while True:
            if self._arguments is None:
                begun = self._beginning()
                if begun is None:
                    return
                name, self._done = begun
                self.calls, self._arguments = self.calls + 1, _JsonObject()
                yield CallStarted(name)
            start, end = self._done, self._arguments.end(self._text, self._done)
            self._done = len(self._text) if end is None else end
            if self._done > start:
                yield ArgumentsDelta(self._text[start : self._done])
            if end is None:
                return
            self._arguments = None

    def _beginning(self) -> tuple[str, int] | None:
        """The name of the next call, and where its arguments begin; None while it is not all there."""
        format, text = self.format, self._text
        if self.calls and format.between is None:
            return None
        lead = (format.tail, format.between or "") if self.calls else (format.opening,)
        begun = _call_head(format, text, _after(text, self._done, *lead))
        return begun if begun is not None and text.startswith("{", begun[1]) else None

    def _after_calls(self) -> str:
        """The content after the last call and its closing constants, which may be incomplete."""
        format, text, place = self.format, self._text, self._done
        last = () if format.arguments is not None else (format.tail,)
        if last and _cut_off("".join((*last, format.closing)), text[place:]):
            return ""
        for constant in (*last, format.closing):
            over = _after(text, place, constant)
            place = place if over is None else over
        rest = text[place:].strip()
        return f"\n{rest}" if rest and self._has_content else rest

    # ---- tagged arguments ----------------------------------------------------------------------------------

    def _tagged_calls(self) -> list[ParserEvent]:
        """All calls, none if one of them is not whole."""
        format, text, events = self.format, self._text, []
        place = _after(text, self._done, format.opening)
        while True:
            read = self._tagged_call(place)
            if read is None:
                return []
            call, place = read
            events += [CallStarted(call.name), ArgumentsDelta(call.arguments)]
            following = None if format.between is None else _after(text, place, format.between)
            if _after(text, following, format.head) is None:
                break
            place = following
        self.calls, self._done = len(events) // 2, place
        return events

    def _tagged_call(self, place: int | None) -> tuple[Call, int] | None:
        """One call from its head on, and where it ends."""
        format, text = self.format, self._text
        begun = _call_head(format, text, place)
        if begun is None or format.arguments is None:
            return None
        name, start = begun
        read = format.arguments.read(text, start, name, self.tools.get(name), _loose(format.tail))
        return None if read is None else (Call(name, json.dumps(read[0], ensure_ascii=False)), read[1])


class _JsonObject:
    """A JSON object as it is written. It ends with its bracket, whatever else is wrong with it."""

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


def _reasoning_end(format: ToolFormat, text: str, ended: bool) -> int | None:
    """The end of the reasoning that an answer begins with; 0 where it has none or never ends; None while
    that is not known.
    """
    if format.reasoning is None:
        return 0
    begin, words = format.reasoning.begin, text.lstrip()
    if words.startswith(begin):
        at = text.find(format.reasoning.end)
        return at if at >= 0 else 0 if ended else None
    return None if begin.startswith(words) and not ended else 0


def _call_head(format: ToolFormat, text: str, place: int | None) -> tuple[str, int] | None:
    """The name of the call whose head is at a place, and where its arguments begin."""
    start = _after(text, place, format.head)
    name = None if start is None else CALL_NAME.match(text, start)
    begin = None if name is None else _after(text, name.end(), format.middle)
    return None if name is None or begin is None else (name[0], begin)


def _after(text: str, place: int | None, *constants: str) -> int | None:
    """The end of the format's constants, if they occur there: models vary the white space in them."""
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
