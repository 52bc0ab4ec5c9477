"""What a tool's JSON schema says of an argument's kind: enough to tell the text "7" from the number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = ("string", "integer", "number", "boolean", "null", "array", "object")
MOST_STEPS = 32  # references and alternatives that are followed into each other


def kinds(schema: Any, root: Mapping[str, Any], steps: int = 0) -> set[str] | None:
    """The kinds of value that a schema allows; None where it does not say."""
    schema = followed(schema, root)
    if not isinstance(schema, Mapping) or steps > MOST_STEPS:
        return None
    if "const" in schema or "enum" in schema:
        return {kind_of(value) for value in allowed(schema)}
    if "type" in schema:
        named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        return {kind for kind in named if kind in KINDS} or None
    for word in ("anyOf", "oneOf"):
        if isinstance(schema.get(word), list):
            inside = [kinds(one, root, steps + 1) for one in schema[word]]
            return None if None in inside else {kind for own in inside for kind in own or ()}
    return None


def allowed(schema: Mapping[str, Any]) -> list[Any]:
    """The values that `const` or `enum` names."""
    return [schema["const"]] if "const" in schema else list(schema["enum"])


def followed(schema: Any, root: Mapping[str, Any]) -> Any:
    """A schema, or the one in the same document that its `$ref` points to; None where it leads nowhere."""
    for _ in range(MOST_STEPS):
        if not isinstance(schema, Mapping) or not isinstance(schema.get("$ref"), str):
            return schema
        place: Any = root
        for step in schema["$ref"].removeprefix("#").strip("/").split("/"):
            place = place.get(step) if isinstance(place, Mapping) else None
        schema = place
    return None


def kind_of(value: Any) -> str:
    """A value's kind in JSON."""
    if isinstance(value, bool):
        return "boolean"
    names = {int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def is_a(value: Any, kind: str) -> bool:
    """Whether a value is of a kind: whole numbers are numbers too."""
    own = kind_of(value)
    return own == kind or (own == "integer" and kind == "number")
