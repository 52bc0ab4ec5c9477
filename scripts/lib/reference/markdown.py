"""Texts of the code as Markdown: docstrings and help as paragraphs, types as words, rows as a table."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal

HEAD = "<!-- made by python -m scripts.tables.reference; not edited by hand -->\n"


def escaped(text: str) -> str:
    """One line of text: what Markdown would read as its own outside of code is escaped."""
    text = re.sub(r"``?([^`]+)``?", r"`\1`", " ".join(text.split()))
    text = re.sub(r"(?<![\w`=-])(--[a-z][\w-]*)(?![^`]*`(?:[^`]*`[^`]*`)*[^`]*$)", r"`\1`", text)  # an option
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part[:1] == "`" else re.sub(r"([<$*{])", r"\\\1", part) for part in parts)


def code(text: str) -> str:
    """Text as code within a line."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Rows of Markdown texts under the names of their columns. A bar within one would end its cell."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    cells = [[text.replace("|", r"\|") for text in row] for row in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"


def prose(documented: str | None) -> str:
    """A docstring as paragraphs; its indented lines are code."""
    made = []
    for part in re.split(r"\n\s*\n", inspect.cleandoc(documented or "")):
        lines = part.splitlines()
        if lines and all(line.startswith("    ") for line in lines):
            made.append(f"```text\n{textwrap.dedent(part)}\n```")
        elif part.strip():
            made.append(escaped(part))
    return "\n\n".join(made) + "\n" if made else ""


def kind(hint: Any) -> str:
    """A type as a reader would write it: ``int (1 or more)``, ``"a" or "b"``, ``list of str``."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"{kind(inner[0])} ({', '.join(str(bound) for bound in inner[1:])})"
    if origin is Literal:
        return " or ".join(repr(one).replace("'", '"') for one in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind(one) for one in inner))
    if origin in (tuple, list):
        return f"list of {kind(inner[0])}"
    if origin is dict:
        return f"map of {kind(inner[0])} to {kind(inner[1])}"
    if hint is type(None):
        return "null"
    if isinstance(hint, type):
        return hint.__module__.rpartition(".")[2] if hint.__name__ == "Config" else hint.__name__
    return str(hint).replace("typing.", "")
