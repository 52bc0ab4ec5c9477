"""A text of one's own, ``text:PATH``: perplexity, and bits per byte, which models of any vocabulary share.

A text file is one document. A folder has one in each of its text files; JSON lines have one in each line's
"text", parquet in each row's.
"""

from __future__ import annotations

from cutaway.data import sources
from cutaway.errors import UserError
from cutaway.evaluate.task import Text


def task(path: str, limit: int | None = None) -> Text:
    """The documents, or their first ``limit`` characters. UserError unless they are there and UTF-8."""
    kept: list[str] = []
    room = limit
    for document in sources.documents(sources.Source(path=path)):
        if document is None:
            raise UserError(f"{path}: is not UTF-8 text, or holds a file that is not")
        if document:
            kept.append(document[:room])
        if room is not None:
            room -= len(document)
            if room <= 0:
                break
    return Text(f"text:{path}", path, tuple(kept or [""]))
