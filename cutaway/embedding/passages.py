"""A folder's text files, cut at the ends of paragraphs into passages that a model can hold.

A passage takes as many whole paragraphs as fit; a paragraph that does not is cut between words. The last
paragraph of a passage is the first of the next, where there is room for both, so that what spans two is
found too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

LONGEST = 1000  # characters of a passage: well below 512 tokens in most scripts
OVERLAP = 250  # a paragraph no longer than this is repeated
LARGEST = 64 << 20  # bytes of a file that is read
PARAGRAPH = re.compile(r"\S[\s\S]*?(?=\n[ \t]*\n|\Z)")


class Passage(NamedTuple):
    """A piece of a file: where it begins (its line, from 1) and its text."""

    line: int
    text: str


def files(folder: Path) -> Iterator[Path]:
    """Every plain file below a folder, in order; hidden ones and links are left out."""
    for home, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(home, name)
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path


def decoded(data: bytes) -> str | None:
    """A file's text, or None if it is none: UTF-8, or UTF-16 with its mark; a zero byte is no text."""
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\x00" in text else text


def passages(text: str, longest: int = LONGEST, overlap: int = OVERLAP) -> list[Passage]:
    """A text in pieces of at most ``longest`` characters."""
    out: list[Passage] = []
    held: list[tuple[int, str]] = []
    for start, part in _parts(text.replace("\r\n", "\n"), longest):
        if held and sum(len(one) + 2 for _, one in held) + len(part) > longest:
            out.append(_joined(held))
            last = held[-1]
            held = [last] if len(last[1]) <= overlap and len(last[1]) + 2 + len(part) <= longest else []
        held.append((start, part))
    return [*out, _joined(held)] if held else out


def fitting(pieces: list[Passage], fits: Callable[[str], bool]) -> list[Passage]:
    """The same, those that do not fit cut in halves until they do."""
    out: list[Passage] = []
    for piece in pieces:
        if len(piece.text) < 2 or fits(piece.text):
            out.append(piece)
            continue
        halves = _parts(piece.text, (len(piece.text) + 1) // 2)
        out += fitting([Passage(piece.line + line - 1, text) for line, text in halves], fits)
    return out


def _joined(parts: list[tuple[int, str]]) -> Passage:
    return Passage(parts[0][0], "\n\n".join(part for _, part in parts))


def _parts(text: str, longest: int) -> Iterator[tuple[int, str]]:
    """Paragraphs, those that are too long cut after a space where there is one; each with its line."""
    line, counted = 1, 0
    for found in PARAGRAPH.finditer(text):
        start, stop = found.span()
        while start < stop:
            end = stop if stop - start <= longest else _cut(text, start, start + longest)
            line, counted = line + text.count("\n", counted, start), start
            part = text[start:end].strip()
            if part:
                yield line, part
            start = end


def _cut(text: str, start: int, end: int) -> int:
    """The place to cut a long paragraph: after the last white space, else at the limit."""
    for at in range(end, start + (end - start) // 2, -1):
        if text[at - 1].isspace():
            return at
    return end
