"""Where the constants of a format begin and end: never in the midst of a mark, and freely in white space."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

ID, COUNT = "\ue000", "\ue003"  # stand for a call's id and its number in the constants of a format
TAG = r"<[^<>\s][^<>]*>|\[/?[A-Z_]+\]"


def common_prefix(one: str, other: str) -> str:
    """The beginning that two texts share."""
    same = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(same, min(len(one), len(other)))]


def common_suffix(one: str, other: str) -> str:
    """The ending that two texts share."""
    return common_prefix(one[::-1], other[::-1])[::-1]


def tail_of(last: str, inner: str, special: Sequence[str] = ()) -> str:
    """What follows each of several things: the last of them, and one that another follows."""
    at = len(common_prefix(last, inner))
    return last[
        : min((start for text in (last, inner) for start, _ in _around(text, at, special)), default=at)
    ]


def head_of(first: str, inner: str, special: Sequence[str] = ()) -> str:
    """What precedes each of several things: the first of them, and one that follows another."""
    size = len(common_suffix(first, inner))
    sizes = [
        len(text) - stop for text in (first, inner) for _, stop in _around(text, len(text) - size, special)
    ]
    return first[len(first) - min(sizes, default=size) :]


def _around(text: str, at: int, special: Sequence[str]) -> list[tuple[int, int]]:
    """The delimiters that contain a position."""
    pattern = _pattern(tuple(special))
    return [found.span() for found in pattern.finditer(text) if found.start() < at < found.end()]


@lru_cache(maxsize=32)
def _pattern(special: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join([*map(re.escape, sorted(special, key=len, reverse=True)), TAG]))


def loose(constant: str) -> str:
    """A pattern of a constant: models are free with the space in it."""
    parts = re.split(r"(\s+|[{}\[\]:,])", constant.strip())
    pattern = "".join(
        r"\s*" if part.isspace() else rf"\s*{re.escape(part)}\s*" if part in "{}[]:," else re.escape(part)
        for part in parts
        if part
    )
    pattern = pattern.replace(ID, "[a-zA-Z0-9_-]+").replace(COUNT, "[0-9]+")
    return re.sub(r"(?:\\s\*)+", r"\\s*", rf"\s*{pattern}\s*")  # one after another would be tried in all ways
