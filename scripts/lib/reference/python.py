"""The Python API: the objects that users hold, and those that the pages' snippets import."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import typing
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import cutaway
from cutaway.continuation import BatchOptions, GenerationOptions, ThinkOptions
from cutaway.conversations import RenderOptions
from cutaway.engines import LoadOptions
from cutaway.generate.batch.request import Generation, Piece
from cutaway.inspect.trace import Trace, Traces
from scripts.lib.reference.markdown import HEAD, code, prose

DOCS = Path(__file__).parents[3] / "docs"
INTRODUCTION = """# The Python API

`import cutaway` has `load`, which opens a model, `Tokenizer`, `tracing`, and the two errors. What they
return follows. Then come the other objects that the snippets of these pages import, by module. What is not
listed may change without a note.
"""
HELD = (
    cutaway.load,
    cutaway.LanguageModel,
    cutaway.Tokenizer,
    cutaway.tracing,
    cutaway.UserError,
    cutaway.OperationalError,
    Generation,
    Piece,
    Trace,
    Traces,
    LoadOptions,
    GenerationOptions,
    BatchOptions,
    ThinkOptions,
    RenderOptions,
)


def imported() -> dict[str, list[str]]:
    """The names that snippets of docs/ import from cutaway, by module."""
    found: dict[str, set[str]] = defaultdict(set)
    for page in sorted(DOCS.glob("**/*.md")):
        for block in re.findall(r"^```pycon\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
            for example in doctest.DocTestParser().get_examples(block):
                for node in ast.walk(ast.parse(example.source)):
                    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cutaway"):
                        found[node.module or ""] |= {one.name for one in node.names}
    return {module: sorted(names) for module, names in sorted(found.items())}


def _objects() -> Iterator[tuple[str, Any]]:
    """Each class or function that a snippet imports, once, with its module's name."""
    seen = {id(one) for one in HELD}
    for module, names in imported().items():
        for name in names:
            try:
                one = getattr(importlib.import_module(module), name)
            except AttributeError:
                one = importlib.import_module(f"{module}.{name}")
            public = inspect.isclass(one) or inspect.isfunction(one)
            if public and id(one) not in seen:
                seen.add(id(one))
                yield module, one


class _Words(str):
    """Text that a signature shows as it is."""

    __repr__ = str.__str__


def _signature(one: Any) -> str:
    """The parameters and what is returned, with a function that is a default by its name."""
    try:
        found = inspect.signature(one)
    except (TypeError, ValueError):
        return ""
    parameters = []
    for name, parameter in found.parameters.items():
        if name in ("self", "cls"):
            continue
        default, hint = parameter.default, parameter.annotation
        if inspect.isfunction(default):
            default = _Words("..." if default.__name__ == "<lambda>" else default.__name__)
        if isinstance(hint, str):
            hint = _Words(hint)
        parameters.append(parameter.replace(default=default, annotation=hint))
    returned = found.return_annotation
    returned = _Words(returned) if isinstance(returned, str) else returned
    return str(found.replace(parameters=parameters, return_annotation=returned))


def _annotated(text: str) -> str:
    return re.sub(r"\b(?:typing|collections\.abc|pathlib)\.", "", text)


def _one(one: Any, level: str = "###") -> str:
    kind = "class" if inspect.isclass(one) else ""
    signature = "" if typing.is_typeddict(one) else _annotated(_signature(one))
    own = "" if is_dataclass(one) and (one.__doc__ or "").startswith(f"{one.__name__}(") else one.__doc__
    parts = [
        f"{level} {one.__name__}\n",
        f"```python\n{kind} {one.__name__}{signature}\n```\n".replace("\n ", "\n"),
    ]
    parts += [prose(own)]
    if typing.is_typeddict(one):
        parts.append(_keys(one))
    elif inspect.isclass(one) and not issubclass(one, BaseException):
        parts += _members(one)
    return "\n".join(part for part in parts if part)


def _keys(one: Any) -> str:
    keys = [f"- {code(f'{name}: {_annotated(_text(hint))}')}" for name, hint in one.__annotations__.items()]
    return "\n".join(keys) + "\n"


def _text(hint: Any) -> str:
    return (
        hint.__forward_arg__ if isinstance(hint, typing.ForwardRef) else getattr(hint, "__name__", str(hint))
    )


def _members(one: type[Any]) -> Iterator[str]:
    """The documented methods and properties that are a class's own."""
    for name, member in vars(one).items():
        if name.startswith("_"):
            continue
        function = (
            getattr(member, "__func__", None)
            or getattr(member, "fget", None)
            or getattr(member, "func", member)
        )
        if not inspect.isfunction(function) or not function.__doc__:
            continue
        call = _annotated(_signature(function)) if callable(member) or hasattr(member, "__func__") else ""
        yield f"**{code(name + call)}**\n\n{prose(function.__doc__)}"


def page() -> str:
    """The page of all public objects."""
    parts = [HEAD, INTRODUCTION, "## What users hold\n", *map(_one, HELD)]
    last = ""
    for module, one in _objects():
        if module != last:
            parts.append(f"## {module}\n")
            last = module
        parts.append(_one(one))
    return "\n".join(parts)
