"""Parse a written answer: its numbers, its last line, whether it names the expected text."""

from __future__ import annotations

import re
from fractions import Fraction

# A minus belongs to a number unless a word, a digit or a bracket is before it: 5-3 has no -3.
NUMBER = re.compile(
    r"(?:(?<![\w)\]}])(?P<minus>[-\u2212])\s?[$€£]?|(?<![A-Za-z_0-9.]))"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?(?P<part>\.[0-9]+)?(?P<power>[eE][-+]?[0-9]{1,3})?"
    r"(?:/(?P<under>[0-9]+))?(?![A-Za-z_]*[0-9])"
)
DENIED = re.compile(
    r"(?:\b(?:not|never|neither|nor|no|or|isn't|aren't|wasn't|cannot be|can't be|won't be)|n't be)"
    r"\s+(?:(?:the|a|an|exactly|equal to|be)\s+)*[\"'*`$(]*$",
    re.I,
)


def numbers(text: str) -> list[tuple[Fraction, int]]:
    """The numbers of a text, exact, each with where it begins."""
    found = []
    for match in NUMBER.finditer(text):
        whole, part, power, under = (match[name] or "" for name in ("whole", "part", "power", "under"))
        if not whole and not part:
            continue
        value = Fraction(f"{whole.replace(',', '') or '0'}{part}{power}")
        if under:
            if int(under) == 0:
                continue
            value /= int(under)
        found.append((-value if match["minus"] else value, match.start()))
    return found


def last_number(text: str) -> Fraction | None:
    """The last number of a text."""
    found = numbers(text)
    return found[-1][0] if found else None


def last_line(text: str) -> str:
    """The last line that is not empty."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def names(expected: str, line: str) -> bool:
    """Whether a line gives the expected answer.

    A number is the line's last one, of the same value however it is spelt. A text is in the line as a
    word of its own. Neither is denied ("not 4") nor offered beside another ("3 or 4").
    """
    bare = expected.strip(" $€£%.")
    wanted = numbers(bare)
    if wanted and NUMBER.fullmatch(bare):
        found = numbers(line)
        return bool(found) and found[-1][0] == wanted[0][0] and not DENIED.search(line[: found[-1][1]])
    word = re.compile(rf"(?<![\w-]){re.escape(expected.strip())}(?![\w-]|[.,]\d| or )")
    return any(not DENIED.search(line[: match.start()]) for match in word.finditer(line))
