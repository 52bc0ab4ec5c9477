"""Text that knows, character by character, who wrote it: the chat template, or the sender of what it quotes.

Every constant of a template is given a range of whole numbers, its *origins*, and every character of it
carries one of them. Ranges never touch, so that a stretch of consecutive origins is a stretch of one
constant, in its order and nothing left out. A character of the conversation carries the negated number of the
string it came in, and a character of which nothing is known carries 0. Only the operations written down here
keep origins; whatever else a template does with a string, Python answers with a plain `str`, which counts as
unknown. So a forgotten operation loses the template's authority over a text and never lends it to content: it
fails closed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from operator import index
from string import Formatter
from typing import SupportsIndex, TypeVar

from cutaway.errors import UserError

Kind = TypeVar("Kind", bound="Text")
HTML = {"&": "&amp;", ">": "&gt;", "<": "&lt;", "'": "&#39;", '"': "&#34;"}


class Meter:
    """What one rendering may still use: steps (blocks, calls) and characters (of all strings made)."""

    def __init__(self) -> None:
        self.steps = self.characters = 0

    def fill(self, steps: int, characters: int) -> None:
        self.steps, self.characters = steps, characters

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise UserError("the chat template takes more steps than any conversation needs; it was stopped")

    def write(self, characters: int) -> None:
        self.characters -= characters
        if self.characters < 0:
            raise UserError("the chat template writes more than any conversation needs; it was stopped")


meter = Meter()


class Text(str):
    """A string whose i-th character has origin `_o[i]`: positive from the template, else not."""

    __slots__ = (
        "_o",
    )  # a template can read any attribute whose name has no underscore, and must find only str's
    _o: array[int]

    def __str__(self) -> Text:
        return self

    def __add__(self, other: str) -> Text:
        if not isinstance(other, str) or (hasattr(other, "__html__") and not isinstance(other, Text)):
            return NotImplemented
        return _made(type(self), str.__add__(self, other), self._o + origins(other))

    def __radd__(self, other: str) -> Text:
        if not isinstance(other, str):
            return NotImplemented
        return _made(type(self), str.__add__(other, self), origins(other) + self._o)

    def __mul__(self, times: SupportsIndex) -> Text:
        number = index(times)
        meter.write(len(self) * max(number, 0))
        return _made(type(self), str.__mul__(self, number), self._o * number)

    def __rmul__(self, times: SupportsIndex) -> Text:
        return self * times

    def __getitem__(self, key: SupportsIndex | slice) -> Text:
        if isinstance(key, slice):
            return _made(type(self), str.__getitem__(self, key), self._o[key])
        return _made(type(self), str.__getitem__(self, key), array("i", [self._o[key]]))

    def __iter__(self) -> Iterator[Text]:
        return (self[i] for i in range(len(self)))

    def strip(self, chars: str | None = None, /) -> Text:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> Text:
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> Text:
        return self[: len(str.rstrip(self, chars))]

    def removeprefix(self, prefix: str, /) -> Text:
        return self[len(self) - len(str.removeprefix(self, prefix)) :]

    def removesuffix(self, suffix: str, /) -> Text:
        return self[: len(str.removesuffix(self, suffix))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Text]:
        return self._located(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Text]:
        return self._located(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[Text]:
        lines, start = [], 0
        for line, whole in zip(str.splitlines(self, keepends), str.splitlines(self, True), strict=True):
            lines.append(self[start : start + len(line)])
            start += len(whole)
        return lines

    def _located(self, pieces: list[str], sep: str | None) -> list[Text]:
        """The pieces of a split with their origins: each follows the previous one's separator or space."""
        found, start = [], 0
        for piece in pieces:
            start = str.find(self, piece, start) if sep is None else start
            found.append(self[start : start + len(piece)])
            start += len(piece) + len(sep or "")
        return found

    def partition(self, sep: str, /) -> tuple[Text, Text, Text]:
        return self._around(*str.partition(self, sep))

    def rpartition(self, sep: str, /) -> tuple[Text, Text, Text]:
        return self._around(*str.rpartition(self, sep))

    def _around(self, before: str, middle: str, _: str) -> tuple[Text, Text, Text]:
        cut = len(before) + len(middle)
        return self[: len(before)], self[len(before) : cut], self[cut:]

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            meter.write((len(self) + 1) * len(new))
            return str.replace(self, old, new, count)
        return joined(self.split(old, count), self._raw(new), type(self))

    def join(self, items: Iterable[str], /) -> Text:
        return joined([self._raw(item) for item in items], self, type(self))

    def _raw(self, other: str) -> str:
        """What an argument becomes before it goes in: itself, but marked-safe text escapes it."""
        return other


class Safe(Text):
    """What `|safe` makes: as markupsafe's Markup, it HTML-escapes whatever ordinary text is added to it."""

    __slots__ = ()

    def __html__(self) -> Safe:
        return self

    def __str__(self) -> Text:
        return _made(Text, str.__str__(self), self._o)

    def __add__(self, other: str) -> Text:
        return Text.__add__(self, self._raw(other))

    def __radd__(self, other: str) -> Text:
        return Text.__radd__(self, self._raw(other))

    def _raw(self, other: str) -> str:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return other
        return joined([content(HTML[c]) if c in HTML else c for c in as_text(other)], "", Text)


# A template may quote a type's name in an error; it reads the same as with ordinary strings.
Text.__name__ = Text.__qualname__ = "str"
Text.__module__ = "builtins"
Safe.__name__ = Safe.__qualname__ = "Markup"
Safe.__module__ = "markupsafe"


def _made(kind: type[Kind], text: str, origins: array[int]) -> Kind:
    meter.write(len(text))
    made = str.__new__(kind, text)
    made._o = origins
    return made


def constant(text: str, first: int) -> Text:
    """A constant of a template, its characters numbered from `first`."""
    return _made(Text, text, array("i", range(first, first + len(text))))


def content(text: str, number: int = 0) -> Text:
    """A string of the conversation, the `number`-th; 0 if nothing is known of it."""
    return _made(Text, text, array("i", [-number]) * len(text))


def safe(text: str) -> Safe:
    """The same text, marked as HTML."""
    return _made(Safe, str.__str__(text), origins(text))


def origins(text: str) -> array[int]:
    """The origins of any string: a plain one is of unknown origin throughout."""
    return text._o if isinstance(text, Text) else array("i", [0]) * len(text)


def as_text(text: str) -> Text:
    return text if isinstance(text, Text) else content(text)


def joined(pieces: Iterable[str], between: str = "", kind: type[Text] = Text) -> Text:
    """`between.join(pieces)` with origins. Raises TypeError as `str.join` does when a piece is no string."""
    pieces = list(pieces)
    meter.write(sum(map(len, pieces)) + len(between) * len(pieces))
    text = str.join(between, pieces)
    separator, whole = origins(between), array("i")
    for i, piece in enumerate(pieces):
        if i and separator:
            whole.extend(separator)
        whole.extend(origins(piece))
    return _made(kind, text, whole)


def formatted(pattern: Text, field, arguments: tuple, names: dict) -> Text:
    """`pattern.format(...)` with origins; `field(name, arguments, names)` obeys the sandbox.

    Raises UserError for a format specification, since a width in one can ask for any amount of memory.
    """
    pieces, start, automatic = [], 0, 0
    for literal, name, spec, conversion in Formatter().parse(str.__str__(pattern)):
        start, piece = _literal(pattern, literal, start)
        pieces.append(piece)
        if name is None:
            continue
        if spec or conversion not in (None, "s"):
            raise UserError("a format specification such as '{:>9}' is not allowed here")
        start = pattern.index("}", start) + 1
        if not name or name[0] in ".[":
            name, automatic = f"{automatic}{name}", automatic + 1
        pieces.append(pattern._raw(as_text(str(field(name, arguments, names)))))
    return joined(pieces, "", type(pattern))


def _literal(pattern: Text, literal: str, start: int) -> tuple[int, Text]:
    """The stretch of a pattern that spells `literal`, doubled braces read as one, and where it ends."""
    kept = []
    for character in literal:
        kept.append(pattern[start])
        start += 2 if character in "{}" else 1
    found = joined(kept)
    return start, found if found == literal else content(literal)
