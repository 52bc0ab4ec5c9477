"""The two ways in which Cutaway says no, the user's mistake and the world's, and how it quotes and counts."""

import re
import reprlib

# What a terminal obeys instead of showing: control characters but for tab and newline, and what reverses
# the direction of text; half a surrogate pair, which no terminal can show.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 72


class UserError(Exception):
    """A request that cannot be honoured: what, where, and what to do, in one sentence (exit code 2)."""


class OperationalError(Exception):
    """What was asked is fine, but the network, the disk or another program failed. Exit code 1."""


def visible(text: str) -> str:
    r"""The text with what a terminal would obey as escapes (``\x1b``); tabs and newlines stay."""
    return _OBEYED.sub(lambda found: escaped(found[0]), text)


def escaped(text: str) -> str:
    r"""The text on one line: all that is not printable, tabs and newlines too, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plural(count: int, one: str, many: str = "") -> str:
    """A number with its word: 1 row, 2,000 rows."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def quoted(value: object) -> str:
    """A value from a file or a request as an error shows it: on one line, in some 80 characters."""
    text = _BRIEF.repr(value)
    if not isinstance(value, str):
        text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"
