"""JSON schemas: the kinds of value that one allows, and the part of one that a grammar can hold."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

KINDS = ("string", "integer", "number", "boolean", "null", "array", "object")
LONGEST_WORD, NEAR = 32, 0.8  # of a keyword: characters that are compared, and how alike a misspelt one is
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


# ---- what a grammar can hold -------------------------------------------------------------------------------

UNHELD = frozenset(
    [
        "uniqueItems",
        "propertyNames",
        "not",
        "if",
        "then",
        "else",
        "contains",
        "minContains",
        "maxContains",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "unevaluatedProperties",
        "unevaluatedItems",
        "$dynamicRef",
        "$dynamicAnchor",
    ]
)
FORMATS = frozenset(
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
)
ONE, LIST, NAMED, VALUES, ANNOTATIONS = (
    frozenset(words.split())
    for words in (
        "items additionalProperties additionalItems contains not if then else propertyNames",
        "anyOf allOf oneOf prefixItems",
        "properties patternProperties $defs definitions dependentSchemas",
        """type enum const format pattern minLength maxLength minimum maximum exclusiveMinimum
        exclusiveMaximum multipleOf minItems maxItems required minProperties maxProperties $ref
        $recursiveRef""",
        """title description default example examples deprecated readOnly writeOnly discriminator externalDocs
        xml propertyOrdering $schema $id id $comment $anchor $recursiveAnchor $vocabulary""",
    )
)
LARGEST = 2**53
HELD = ONE | LIST | NAMED | VALUES | UNHELD


def rewritten(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A schema in which each object that is a schema is changed, from the inside out."""
    if not isinstance(schema, dict):
        return schema
    made = dict(schema)
    for word, value in schema.items():
        if word in ONE:
            made[word] = rewritten(value, change)
        elif word in LIST and isinstance(value, list):
            made[word] = [rewritten(one, change) for one in value]
        elif word in NAMED and isinstance(value, dict):
            made[word] = {name: rewritten(one, change) for name, one in value.items()}
    return change(made)


def closed(schema: Any) -> Any:
    """A schema whose objects have the properties that they name and no others, unless they say otherwise. The
    property that tells branches apart is written, without which open branches of `oneOf` would fit as well.
    """
    joined, schema = False, rewritten(schema, lambda one: _distinguished(one, schema))

    def look(one: dict[str, Any]) -> dict[str, Any]:
        nonlocal joined
        joined = joined or ("allOf" in one and (len(one["allOf"]) != 1 or "properties" in one))
        return one

    def close(one: dict[str, Any]) -> dict[str, Any]:
        one = {word: value for word, value in one.items() if word not in ("$schema", "$id", "$comment")}
        one = _with_named_keys(one, schema)
        open_ = one.keys() & {"additionalProperties", "patternProperties", "unevaluatedProperties", "$ref"}
        if one.get("properties") and not joined and not open_ and not one.keys() & (LIST | {"if"}):
            one["additionalProperties"] = False
        return one

    rewritten(schema, look)
    return rewritten(schema, close)


def _distinguished(one: dict[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """A schema whose branches all require the property of its ``discriminator``, if it has one."""
    discriminator = one.get("discriminator")
    name = discriminator.get("propertyName") if isinstance(discriminator, Mapping) else None
    branches = [followed(branch, root) for branch in one.get("oneOf") or ()]
    if name is None or not all(
        isinstance(b, Mapping) and name in (b.get("properties") or {}) for b in branches
    ):
        return one
    needed = ([*dict.fromkeys([*(each.get("required") or ()), name])] for each in branches)
    return {**one, "oneOf": [{**each, "required": own} for each, own in zip(branches, needed, strict=True)]}


def _with_named_keys(one: dict[str, Any], root: Mapping[str, Any]) -> dict[str, Any]:
    """An object whose ``propertyNames`` list its keys (a record of an enum), with these as its properties."""
    names = followed(one.get("propertyNames"), root)
    if not isinstance(names, Mapping) or one.keys() & {"properties", "patternProperties"}:
        return one
    rest = {word: value for word, value in one.items() if word != "propertyNames"}
    if names.keys() <= {"type"} and names.get("type", "string") == "string":
        return rest
    value = one.get("additionalProperties", True)
    if not names.keys() & {"enum", "const"} or value is False:
        return one
    keys = [key for key in allowed(names) if isinstance(key, str)]
    return rest | {"properties": dict.fromkeys(keys, value), "additionalProperties": False}


def readable(schema: Any) -> tuple[Any, list[str]]:
    """A schema without the patterns that Python's engine does not read (``\\p{...}``), and these."""
    unread: list[str] = []

    def read(one: dict[str, Any]) -> dict[str, Any]:
        pattern = one.get("pattern")
        try:
            re.compile(pattern if isinstance(pattern, str) else "")
            return one
        except re.error:
            unread.append(str(pattern))
            return {word: value for word, value in one.items() if word != "pattern"}

    return rewritten(schema, read), unread


def unread(schema: Any) -> dict[str, str | None]:
    """The keywords of a schema that neither a grammar nor a check reads, as `contentEncoding`, and the known
    one that each was meant for if it is misspelt. Those that begin with x- are extensions.
    """
    found: dict[str, str | None] = {}
    known = {word.lower(): word for word in HELD}

    def look(one: dict[str, Any]) -> dict[str, Any]:
        for word in one.keys() - HELD - ANNOTATIONS:
            if not word.startswith("x-"):
                near = difflib.get_close_matches(word.lower()[:LONGEST_WORD], known, 1, NEAR)
                found[word] = known[near[0]] if near else None
        return one

    rewritten(schema, look)
    return dict(sorted(found.items()))


def holdable(schema: Any, patterns: bool = True) -> tuple[Any, list[str]]:
    """The part of a schema that a grammar can hold, and the keywords that are left out of it; without
    ``patterns`` no pattern is held.
    """
    out: dict[str, None] = {}

    def hold(one: dict[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for word, value in one.items():
            loose = word in UNHELD
            loose |= word == "format" and value not in FORMATS
            loose |= word == "format" and patterns and _is_held(one.get("pattern"))
            loose |= word == "pattern" and not (patterns and _is_held(value))
            loose |= word in ("minProperties", "maxProperties") and "properties" in one
            loose |= word.endswith("imum") and isinstance(value, int | float) and abs(value) > LARGEST
            if loose:
                out[word] = None
            elif word == "oneOf" and "anyOf" not in one:
                kept["anyOf"], out["oneOf"] = value, None
            else:
                kept[word] = value
        return kept

    return rewritten(schema, hold), list(out)


def _is_held(pattern: Any) -> bool:
    """Whether there is a pattern, without looking around and references back."""
    return isinstance(pattern, str) and re.search(r"\(\?[=!<]|\\[1-9]", pattern) is None


def bare(schema: Mapping[str, Any]) -> dict[str, Any]:
    """An object's schema with its properties' kinds alone."""
    properties = schema.get("properties") or {}
    types = {key: kinds(one, schema) for key, one in properties.items()}
    shown = {key: {"type": sorted(own)} if own else {} for key, own in types.items()}
    required = [key for key in schema.get("required") or () if key in properties]
    return {"type": "object", "properties": shown, "required": required, "additionalProperties": False}
