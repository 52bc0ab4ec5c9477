"""The thought that an answer begins with, apart from its content: `<think>...</think>`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

CLOSING = re.compile(r"(<|\[)/((?:\w+:)?(?:think|reason)\w*)(>|\])", re.IGNORECASE)


@dataclass(frozen=True)
class Thought:
    """More of an answer's thought."""

    text: str


@dataclass(frozen=True)
class Marks:
    """The tags around a thought; ``opened`` where the prompt ends with the first, so that an answer begins
    inside.
    """

    begin: str
    end: str
    opened: bool = False

    def of_prompt(self, tail: str) -> Marks:
        """The marks after a prompt that ends with this text."""
        return replace(self, opened=tail.rstrip().endswith(self.begin))

    def within(self, begun: str) -> tuple[Marks | None, str]:
        """The marks after an answer's beginning, None where its thought is over, and the content in that."""
        reader = ThoughtParser(self)
        content = "".join(one for one in reader.push(begun, False) if isinstance(one, str))
        over = reader.state in ("content", "plain")
        return None if over else replace(self, opened=reader.state == "thought"), content


@lru_cache(maxsize=32)
def find_marks(template: str) -> Marks | None:
    """The marks that a template's text has a closing tag of; None where it knows no thoughts."""
    found = CLOSING.search(template)
    return found and Marks(found[1] + found[2] + found[3], found[0])


class ThoughtParser:
    """Text in; thoughts, and text after them, out. White space around either is dropped."""

    def __init__(self, marks: Marks) -> None:
        self.marks, self.text = marks, ""
        self.state = "thought" if marks.opened else "before"
        self.blank = True  # whether nothing was emitted since the state's beginning

    def push(self, text: str, ended: bool) -> list[Thought | str]:
        """Pieces of thought and content in a text; with ``ended`` nothing follows."""
        self.text += text
        events: list[Thought | str] = []
        if self.state == "before":
            words = self.text.lstrip()
            if not ended and len(words) < len(self.marks.begin) and self.marks.begin.startswith(words):
                return []
            begins = words.startswith(self.marks.begin)
            self.state = "thought" if begins else "plain"
            self.text = words[len(self.marks.begin) :] if begins else self.text
        if self.state == "thought":
            thought, end, rest = self.text.partition(self.marks.end)
            held = "" if end or ended else self._held(thought)
            words = thought.removesuffix(held)
            words = words.rstrip() if end else words
            words = words.lstrip() if self.blank else words
            self.blank = self.blank and not words
            events += [Thought(words)] if words else []
            self.text = rest if end else held
            if end:
                self.state, self.blank = "content", True
        if self.state in ("content", "plain"):
            words = self.text.lstrip() if self.state == "content" and self.blank else self.text
            self.blank = self.blank and not words
            events += [words] if words else []
            self.text = ""
        return events

    def _held(self, text: str) -> str:
        """What a thought ends with that may belong to its end: part of the tag, and white space."""
        size = next(
            (n for n in range(len(self.marks.end) - 1, 0, -1) if text.endswith(self.marks.end[:n])), 0
        )
        words = text[: len(text) - size].rstrip()
        return text[len(words) :]
