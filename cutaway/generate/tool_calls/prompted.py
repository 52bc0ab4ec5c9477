"""Tools for a model whose template knows none: described in the system message, called between tags.

All of it is text in messages' contents, so that neither a tool nor its result can write a control token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cutaway.errors import UserError
from cutaway.generate.tool_calls.tool_format import ToolFormat, detect_format
from cutaway.tokenizer import chat

FORMAT = ToolFormat(
    opening="",
    head='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    tail="}\n</tool_call>",
    between="\n",
    closing="",
    can_require=True,
)
ASKING = """You may call these functions, each given by its JSON schema:
<tools>
{tools}
</tools>
To call one, answer with its name and arguments in this form, once for each call:
<tool_call>
{{"name": "NAME", "arguments": {{"ARGUMENT": "VALUE"}}}}
</tool_call>
Its result is given to you between <tool_response> and </tool_response>."""


@dataclass
class Part:
    """A text of a conversation: who wrote it, and the number of its message."""

    text: str
    source: str = "template"
    message: int | None = None


@dataclass
class Sourced:
    """A message as a template reads it, and the parts that its content is made of."""

    message: dict[str, Any]
    parts: list[Part]


def as_text(given: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[Sourced]:
    """A conversation with its tools, calls and results as text; a role's messages in a row are one."""
    made: list[tuple[str, list[Part]]] = []
    if tools:
        shown = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        made.append(("system", [Part(ASKING.format(tools=shown))]))
    for number, message in enumerate(given):
        role, own = message["role"], [Part(message["content"], message["role"], number)]
        if role == "tool":
            role, own = "user", [Part("<tool_response>\n"), *own, Part("\n</tool_response>")]
        for call in message.get("tool_calls") or ():
            arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            call = FORMAT.head + call["function"]["name"] + FORMAT.middle + arguments + FORMAT.tail
            own = _without_first_lines([*own, Part(f"\n{call}", role, number)])
        if made and made[-1][0] == role:
            made[-1][1].extend([Part("\n\n"), *own])
        else:
            made.append((role, own))
    return [Sourced({"role": role, "content": _joined(own)}, own) for role, own in made]


def as_given(given: Sequence[Mapping[str, Any]]) -> list[Sourced]:
    """A conversation as it is, for a template that knows tools."""
    found = []
    for number, message in enumerate(given):
        content = message.get("content")
        parts = [Part(content, message["role"], number)] if isinstance(content, str) else []
        found.append(Sourced(dict(message), parts))
    return found


def _joined(parts: Sequence[Part]) -> str:
    return "".join(part.text for part in parts)


def _without_first_lines(own: list[Part]) -> list[Part]:
    """The parts without the line breaks that their text begins with."""
    for at, part in enumerate(own):
        if first := part.text.lstrip("\n"):
            return [replace(part, text=first), *own[at + 1 :]]
    return []


def without_system(given: Sequence[Sourced]) -> list[Sourced]:
    """A conversation whose system message begins the first of the user's, for templates that take none."""
    roles = [one.message["role"] for one in given[:2]]
    if roles != ["system", "user"]:
        return list(given)
    system, user, *rest = given
    content = f"{system.message['content']}\n\n{user.message['content']}"
    parts = [*system.parts, Part("\n\n"), *user.parts]
    return [Sourced({**user.message, "content": content}, parts), *rest]


def format_of(template: str, tokenizer: Any) -> ToolFormat:
    """How a model writes calls of tools: as its chat template does, else as it is asked to here."""
    try:
        return detect_format(template, tokenizer)
    except UserError:
        return FORMAT


def render(
    given: Sequence[Mapping[str, Any]],
    template: str,
    format: ToolFormat,
    tools: Sequence[Mapping[str, Any]] | None,
    **variables: Any,
) -> list[int]:
    """The ids of a conversation with tools: by the template, or as text where ``format`` is this module's.

    ``variables`` are those of `tokenizer.chat.render`.
    """
    made, tools = sourced(given, format, tools)
    try:
        return chat.render([one.message for one in made], template, tools=tools, **variables)
    except UserError:
        folded = without_system(made)
        if len(folded) == len(made):
            raise
        return chat.render([one.message for one in folded], template, tools=tools, **variables)


def sourced(
    given: Sequence[Mapping[str, Any]], format: ToolFormat, tools: Sequence[Mapping[str, Any]] | None
) -> tuple[list[Sourced], Sequence[Mapping[str, Any]] | None]:
    """The messages that a template is given, and the tools: none where the messages hold them as text."""
    return (as_text(given, tools or ()), None) if format is FORMAT else (as_given(given), tools)
