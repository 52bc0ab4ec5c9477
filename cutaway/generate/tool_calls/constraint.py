"""Constrain tool calls to their schemas: by a grammar as far as one can, and validated afterwards.

A tool whose schema no grammar can hold is held to its names and types alone, and a warning says so: one odd
schema costs the others nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cutaway.errors import OperationalError, UserError
from cutaway.generate import constrain, json_schema
from cutaway.generate.tool_calls.parser import Call, ToolSchemas
from cutaway.generate.tool_calls.tool_format import ToolFormat
from cutaway.tokenizer import Tokenizer

Check = Callable[[str, Sequence[Call]], str | None]  # why an answer's content and calls do not fit


@dataclass(frozen=True)
class Held:
    """A grammar, what is checked after it, and warnings."""

    grammar: constrain.Grammar
    check: Check | None = None
    warnings: list[str] = field(default_factory=list)


def held_schema(schema: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The closest schema that a grammar can hold, and the keywords that are left out. UserError for what is
    no schema, or is too large.
    """
    constrain.check_size(schema)
    closed = json_schema.closed(schema)
    try:
        constrain.json_schema(closed)
        return closed, []
    except UserError:
        constrain.schema_error(schema, "null")  # raises for what is no schema
    for one, patterns in ((closed, True), (schema, True), (closed, False)):
        held, left_out = json_schema.holdable(one, patterns)
        try:
            constrain.json_schema(held)
            return held, left_out
        except UserError:
            continue
    return ({"type": "object"} if schema.get("type") == "object" else {}), ["the whole schema"]


def left_out_warnings(left_out: Sequence[str], schema: Any, where: str = "the schema") -> list[str]:
    """Sentences that name the keywords left out, and those that nothing reads, if there are any."""
    ignored = unread_warnings(schema, where)
    if not left_out:
        return ignored
    names = ", ".join(left_out)
    unread = json_schema.readable(schema)[1]
    return [
        *ignored,
        f"{names} of {where} are checked after the answer, not held to while it is written",
        *(f"the pattern {pattern[:100]} of {where} cannot be read, and is not checked" for pattern in unread),
    ]


MOST_NAMED = 8  # keywords of a schema in one warning


def unread_warnings(schema: Any, where: str) -> list[str]:
    """A sentence that names the keywords of a schema that nothing reads, if there are any."""
    found = list(json_schema.unread(schema).items())
    if not found:
        return []
    names = [f"{word[:64]!r}" + (f" (is it {near!r}?)" if near else "") for word, near in found[:MOST_NAMED]]
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return [f"{', '.join(names)}{more} of {where}: no keyword that is held to or checked"]


def refuse_misspelt(schema: Any, where: str) -> None:
    """UserError for a schema with a misspelt keyword: one that is to be followed strictly means it."""
    for word, near in json_schema.unread(schema).items():
        if near:
            raise UserError(f"{where} has {word[:64]!r}, which is no keyword of JSON schema: is it {near!r}?")


def schema_error(schema: Mapping[str, Any], text: str) -> str | None:
    """Why JSON does not fit a schema; JSON that is cut off is no matter of the schema."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return None
    try:
        return constrain.schema_error(schema, text)
    except (UserError, OperationalError) as error:
        return str(error)


def call_constraint(
    make: Any, format: ToolFormat, tools: ToolSchemas, tokenizer: Tokenizer, several: bool, **more: Any
) -> Held:
    """Constrain an answer to calls of tools: ``make`` is one of tool_grammar's."""
    held: dict[str, dict[str, Any]] = {}
    loose: dict[str, dict[str, Any]] = {}
    warnings: list[str] = []
    for name, schema in tools.items():
        held[name], left_out = held_schema({"type": "object", "properties": {}, **(schema or {})})
        if not held[name].get("properties"):
            held[name].setdefault("additionalProperties", schema is not None and "properties" not in schema)
        if left_out:
            loose[name] = dict(schema or {})
        warnings += left_out_warnings(left_out, schema, f"{name}'s schema")
    try:
        grammar = make(format, held, tokenizer, several, **more)
    except UserError:
        for name in [name for name in held if not _can_make(make, format, name, held, tokenizer, more)]:
            held[name], loose[name] = json_schema.bare(held[name]), dict(tools[name] or {})
            warnings.append(
                f"of {name}'s schema names and types are held to, and the rest is checked after the answer"
            )
        grammar = make(format, held, tokenizer, several, **more)

    def check(content: str, calls: Sequence[Call]) -> str | None:
        found = (schema_error(loose[call.name], call.arguments) for call in calls if call.name in loose)
        return next((wrong for wrong in found if wrong), None)

    return Held(grammar, check if loose else None, warnings)


def _can_make(
    make: Any,
    format: ToolFormat,
    name: str,
    held: Mapping[str, dict[str, Any]],
    tokenizer: Tokenizer,
    more: Mapping[str, Any],
) -> bool:
    """Whether a grammar can be made for this tool alone."""
    try:
        make(format, {name: held[name]}, tokenizer, False, **more)
    except UserError:
        return False
    return True
