"""Tools for a model whose template knows none: described in the system message, called between tags.

All of it is text in messages' contents, so that neither a tool nor its result can write a control token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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


def messages(given: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A conversation with its tools, calls and results as text; a role's messages in a row are one."""
    made: list[dict[str, Any]] = []
    if tools:
        shown = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        made.append({"role": "system", "content": ASKING.format(tools=shown)})
    for message in given:
        role, content = message["role"], message["content"]
        if role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
        for call in message.get("tool_calls") or ():
            arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            call = FORMAT.head + call["function"]["name"] + FORMAT.middle + arguments + FORMAT.tail
            content = f"{content}\n{call}".lstrip("\n")
        if made and made[-1]["role"] == role:
            made[-1]["content"] += f"\n\n{content}"
        else:
            made.append({"role": role, "content": content})
    return made


def without_system(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A conversation whose system message begins the first of the user's, for templates that take none."""
    first, *rest = map(dict, given)
    if first["role"] != "system" or not rest or rest[0]["role"] != "user":
        return list(map(dict, given))
    rest[0]["content"] = f"{first['content']}\n\n{rest[0]['content']}"
    return rest


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
    if format is FORMAT:
        given, tools = messages(given, tools or ()), None
    try:
        return chat.render(given, template, tools=tools, **variables)
    except UserError:
        folded = without_system(given)
        if folded == given:
            raise
        return chat.render(folded, template, tools=tools, **variables)
