"""The built-in tools by name: the folder ``tools/`` is the registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from cutaway.agent import tools
from cutaway.agent.tool import Tool, from_function
from cutaway.errors import UserError, quoted

Reader = Callable[[], Any]  # an encoder, as `cutaway.load` gives it, made when it is needed


def names() -> list[str]:
    """The built-in tools."""
    return sorted(path.stem for path in Path(tools.__path__[0]).glob("[!_]*.py"))


def built_in(name: str, root: Path, reader: Reader, *, unsafe: bool = False) -> Tool:
    """A built-in tool; ``root`` is the folder that it may read, ``reader`` makes the encoder of a search.

    ``unsafe`` lets ``python`` run where a layer of its sandbox does not hold.
    """
    if name not in names():
        raise UserError(f"there is no tool {quoted(name)}: use {', '.join(names())}")
    make = import_module(f"{tools.__name__}.{name}").make
    return make(root, reader, unsafe=True) if unsafe and name == "python" else make(root, reader)


def make_tools(given: Sequence[str | Tool | Callable[..., Any]], root: Path, reader: Reader) -> list[Tool]:
    """Tools of functions and of built-in ones' names; ``root`` and ``reader`` are as in `built_in`."""
    found: list[Tool] = []
    for tool in given:
        if isinstance(tool, str):
            tool = built_in(tool, root, reader)
        found.append(tool if isinstance(tool, Tool) else from_function(tool))
    return found
