"""An answer that may think and call tools: pieces in; thoughts, content and calls out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cutaway.generate.batch.request import Piece
from cutaway.generate.tool_calls import parser
from cutaway.generate.tool_calls.thoughts import Marks, Thought, ThoughtParser
from cutaway.generate.tool_calls.tool_format import ToolFormat

Event = parser.ParserEvent | Thought


class AnswerReader:
    """One answer. ``format`` None: no call is read; ``forced``: it is calls alone. ``begun``: the text that
    it goes on with, of which it gives no event.
    """

    def __init__(
        self,
        thought: Marks | None,
        format: ToolFormat | None,
        tools: parser.ToolSchemas,
        forced: bool = False,
        begun: str = "",
    ) -> None:
        self.forced = forced
        self.thought_tokens = 0  # read so far
        self.thoughts = None if thought is None else ThoughtParser(thought)
        if self.thoughts is not None and begun:
            self.thoughts.push(begun, False)
        self.calls = (
            None if format is None else parser.StreamingParser(replace(format, reasoning=None), tools)
        )

    @property
    def called(self) -> bool:
        """Whether there were calls, and all are complete."""
        return self.calls is not None and self.calls.complete

    def push(self, piece: Piece) -> list[Event]:
        """The events that a piece brings."""
        ended = piece.generation is not None
        parts: list[Any] = [piece.text] if piece.text else []
        if self.thoughts is not None:
            before = self.thoughts.state
            parts = self.thoughts.push(piece.text, ended)
            thinking = "thought" in (before, self.thoughts.state)
            self.thought_tokens += thinking and piece.id is not None
        if self.calls is None:
            return parts
        events: list[Event] = []
        for one in parts:
            events += [one] if isinstance(one, Thought) else self.calls.push(one)
        events += self.calls.finish() if ended else []
        return [one for one in events if not (self.forced and isinstance(one, str))]


def collect(events: Sequence[Event]) -> tuple[str, str, list[parser.Call]]:
    """The thought, the content and the calls that events add up to."""
    thought = "".join(event.text for event in events if isinstance(event, Thought))
    others = [event for event in events if not isinstance(event, Thought)]
    if all(isinstance(event, str) for event in others):
        return thought, "".join(map(str, others)), []
    return thought, *parser.collect(others)
