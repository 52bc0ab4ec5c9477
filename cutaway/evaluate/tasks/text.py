"""A text of one's own, ``text:FILE``: perplexity, and bits per byte, which models of any vocabulary share."""

from __future__ import annotations

from pathlib import Path

from cutaway.errors import UserError
from cutaway.evaluate.tasks import Text


def task(path: str, limit: int | None = None) -> Text:
    """The file's text, or its first ``limit`` characters. UserError unless it is there and UTF-8."""
    try:
        return Text(f"text:{path}", path, Path(path).read_text("utf-8")[:limit])
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text") from None
