"""A tool that a model may call, made of a Python function with type hints.

def weather(place: str, days: int = 1) -> str:
    '''The weather of a place.

    :param place: A town.'''

tool = from_function(weather)
tool.name, tool.description, tool.parameters       # a JSON schema, from the hints and the docstring
tool.call({"place": "Bern"})                       # checked against the hints
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cutaway.errors import UserError, quoted
from cutaway.extras import need
from cutaway.generate import json_schema

NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


class ToolError(Exception):
    """A call failed: the message goes back to the model."""


@dataclass(frozen=True)
class Tool:
    """A tool: ``parameters`` is the JSON schema of its arguments, ``call`` gives the text of a result.

    ``note`` is what a person reads before it is used. ``call`` raises ToolError with words for the model.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    call: Callable[[dict[str, Any]], str]
    note: str = ""

    @property
    def declaration(self) -> dict[str, Any]:
        """The tool as chat templates and OpenAI's API read it."""
        about = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": about}


def from_function(function: Callable[..., Any]) -> Tool:
    """A tool of a function, which may be async. UserError where its hints give no schema."""
    need("a tool of a function", "docstring_parser", "pydantic")
    from docstring_parser import parse
    from pydantic import ConfigDict, TypeAdapter, ValidationError, validate_call
    from pydantic.errors import PydanticUserError

    adapter: Any = TypeAdapter
    name = getattr(function, "__name__", "")
    if NAME.fullmatch(name) is None:
        raise UserError(f"a tool is a function with a name, and this is {quoted(function)}")
    try:
        schema = json_schema.rewritten(adapter(function).json_schema(), _untitled)
        checked = validate_call(config=ConfigDict(arbitrary_types_allowed=False))(function)
    except PydanticUserError as error:
        raise UserError(f"the tool {name} has no JSON schema: {str(error).splitlines()[0]}") from None
    if schema.get("type") != "object":
        raise UserError(f"the tool {name} takes arguments without names, which a model cannot give")
    about = parse(inspect.getdoc(function) or "")
    for parameter in about.params:
        if parameter.arg_name in schema.get("properties", {}) and parameter.description:
            schema["properties"][parameter.arg_name]["description"] = parameter.description

    def call(arguments: dict[str, Any]) -> str:
        try:
            made = checked(**arguments)
        except ValidationError as error:
            wrong = error.errors()[0]
            raise ToolError(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from None
        if inspect.iscoroutine(made):
            import asyncio

            made = asyncio.run(made)
        return made if isinstance(made, str) else json.dumps(made, ensure_ascii=False, default=str)

    description = "\n".join(filter(None, [about.short_description, about.long_description]))
    return Tool(name, description, schema, call)


def _untitled(schema: dict[str, Any]) -> dict[str, Any]:
    """Without the titles that pydantic makes of names."""
    return {word: value for word, value in schema.items() if word != "title"}


def distinct(tools: Sequence[Tool]) -> tuple[Tool, ...]:
    """The same; UserError where two have one name."""
    seen: set[str] = set()
    for tool in tools:
        if tool.name in seen:
            raise UserError(f"two of the tools are called {tool.name}: leave out one")
        seen.add(tool.name)
    return tuple(tools)
