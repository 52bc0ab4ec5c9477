"""Text files under one folder."""

from __future__ import annotations

from pathlib import Path

from cutaway.agent.built_in_tools import Reader
from cutaway.agent.tool import Tool, ToolError, from_function
from cutaway.embedding.passages import LARGEST, decoded

LINES = 100  # at most, in one call


def make(root: Path, reader: Reader) -> Tool:
    """The tool, for the files under ``root``."""
    home = root.resolve()

    def read(path: str, first_line: int = 1) -> str:
        """Read a text file of the user's folder.

        :param path: The file, relative to the folder.
        :param first_line: The line to begin at, from 1.
        """
        lines = _text(home, path).splitlines()
        start = max(first_line, 1) - 1
        shown = [f"{n}: {line}" for n, line in enumerate(lines[start : start + LINES], start + 1)]
        more = f"\n[{len(lines):,} lines in all]" if len(lines) > start + LINES else ""
        return "\n".join(shown) + more if shown else f"[the file has {len(lines):,} lines]"

    return from_function(read)


def _text(home: Path, path: str) -> str:
    """A file's text. ToolError for one outside of the folder, hidden, or no text."""
    try:
        found = (home / path).resolve()
        inside = found.is_relative_to(home)
        hidden = inside and any(part.startswith(".") for part in found.relative_to(home).parts)
        if not inside or hidden or not found.is_file():
            raise ToolError(f"there is no file {path[:200]!r} in the folder")
        if found.stat().st_size > LARGEST:
            raise ToolError(f"{path[:200]!r} has more than {LARGEST:,} bytes")
        text = decoded(found.read_bytes())
    except (OSError, ValueError) as error:
        raise ToolError(f"{path[:200]!r} cannot be read: {type(error).__name__}") from None
    if text is None:
        raise ToolError(f"{path[:200]!r} is not text")
    return text
