"""Finished rows of a long study, kept in a file: the same call with the same file goes on after them.

    patching.patching(lm, text, other, "heads", answers=answers, resume="heads.jsonl")

The first line states what the study is of, each further line a row's number and its values. A line that a
killed process left unfinished is computed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cutaway.errors import UserError
from cutaway.store import files


class Rows:
    """The rows of a study in a file; without a ``path`` each is computed.

    ``of`` is what the study is of, in JSON's types. Raises UserError for a file of another study.
    """

    def __init__(self, path: str | Path | None, of: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.done: dict[int, list[float]] = {}
        if self.path is None:
            return
        head = json.loads(json.dumps(dict(of)))
        written = _lines(self.path) if self.path.exists() else []
        if written and written[0] != head:
            known = written[0] if isinstance(written[0], dict) else {}
            other = [key for key, value in head.items() if known.get(key) != value]
            raise UserError(
                f"{self.path} is of another study, it differs in {', '.join(other)}: give the same call to "
                "go on, or another file"
            )
        for line in written[1:]:
            if not _is_row(line):  # of a line that is not ours, and what comes after it
                break
            self.done[line[0]] = line[1]
        text = "".join(json.dumps(line) + "\n" for line in (head, *self.done.items()))
        files.write_file(self.path, text)

    def of(self, row: int, compute: Callable[[], Sequence[float]]) -> list[float]:
        """A row's values: those of the file, or computed and written."""
        if row not in self.done:
            self.done[row] = list(map(float, compute()))
            if self.path is not None:
                with files.disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps((row, self.done[row])) + "\n")
        return self.done[row]


def _is_row(line: Any) -> bool:
    """Whether a line is a row's number and its values."""
    if not (isinstance(line, list) and len(line) == 2 and isinstance(line[1], list)):
        return False
    return type(line[0]) is int and all(type(value) in (int, float) for value in line[1])


def _lines(path: Path) -> list[Any]:
    """The file's lines as far as they are whole; UserError where the first is none of ours."""
    found: list[Any] = []
    with files.read_errors(path):
        text = path.read_text("utf-8", "replace")
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    if text and not found:
        raise UserError(f"{path} holds no rows of a study: give another file for resume")
    return found
