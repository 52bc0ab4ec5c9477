"""Added tokens: texts that are one token whatever the model would make of them, found before all else.

Some are control tokens (`special`), which end a turn or begin a text; others are ordinary text that was added
to a vocabulary later. The flags are those of Hugging Face's tokenizer.json: `lstrip` and `rstrip` take the
white space beside a token with it, `single_word` wants no letter beside it, `normalized` looks for it in the
normalised text.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from cutaway.errors import UserError, quoted

DEEPEST = 30  # groups in groups


@cache
def _class(pattern: str) -> Any:
    """A pattern of the `regex` package, which is imported when a token asks for one."""
    import regex

    return regex.compile(pattern)


@dataclass(frozen=True)
class AddedToken:
    """A text that is the token `id`, and the rules by which it is found."""

    id: int
    text: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    def stripped(self, text: str, done: int, start: int, stop: int) -> tuple[int, int]:
        """Where it begins and ends, found at start:stop, with the white space that it takes along."""
        if self.lstrip:
            while start > done and _class(r"\s").match(text[start - 1]):
                start -= 1
        if self.rstrip and stop < done:  # in the white space that the one before took
            stop = done
        elif self.rstrip:
            blanks = _class(r"\s*").match(text, stop)
            stop = blanks.end() if blanks else stop
        return start, stop


Match = tuple[AddedToken, int, int]  # a token, and where it begins and ends


class Finder:
    """Finds the added tokens of `spelt` (text to token): at each place the longest, from left to right."""

    def __init__(self, spelt: Mapping[str, AddedToken]) -> None:
        self.spelt = {text: token for text, token in spelt.items() if text}
        self.pattern = any_of(self.spelt) if self.spelt else None

    def found(self, text: str, control: Iterable[Match]) -> Iterator[Match]:
        """The tokens in a text, and between them the matches of ``control``, in which none is looked for.

        Those are in order and do not overlap. White space beside a token is not in its match.
        """
        place = 0
        for token, start, stop in control:
            yield from self._found(text, place, start)
            yield token, start, stop
            place = stop
        yield from self._found(text, place, len(text))

    def _found(self, text: str, place: int, end: int) -> Iterator[Match]:
        while self.pattern and (found := self.pattern.search(text, place, end)):
            token = self.spelt[found[0]]
            start, place = found.span()
            if not token.single_word or not _beside_a_letter(text, start, place):
                yield token, start, place

    def refuse(self, text: str) -> None:
        """Raises UserError, naming the token and its place, if one is in the text."""
        found = self.pattern.search(text) if self.pattern else None
        if found is not None:
            raise UserError(
                f"the text holds the control token {quoted(found[0])} at character {found.start()}: "
                'take it out, or encode it as plain text (special="text") or as the token (special="allow")'
            )


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of the texts that begins at a place."""
    return re.compile(_alternatives(sorted(texts, key=len, reverse=True)))


def _alternatives(texts: list[str], depth: int = 0) -> str:
    """A pattern for texts, longest first, that looks at what several begin with once."""
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(text[:1], []).append(text)
    out = []
    for group in groups.values():
        size = _shared(min(group), max(group))
        tails = [text[size:] for text in group]
        # `re` compiles groups in groups by recursion
        inner = _alternatives(tails, depth + 1) if depth < DEEPEST else "|".join(map(re.escape, tails))
        out.append(re.escape(group[0][:size]) + (f"(?:{inner})" if len(group) > 1 else ""))
    return "|".join(out)


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with together."""
    differing = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differing, min(len(one), len(other)))


def _beside_a_letter(text: str, start: int, stop: int) -> bool:
    is_letter = _class(r"\w").match
    return bool((start and is_letter(text[start - 1])) or is_letter(text[stop : stop + 1]))
