"""The HTTP API: every path with the fields of its body, out of the document that the server answers with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from cutaway.serve import openapi, routes
from cutaway.serve.operations.access import AccessPolicy
from cutaway.serve.operations.models import Models
from scripts.lib.reference.markdown import HEAD, code, escaped, table

INTRODUCTION = """# The HTTP API

What `cutaway serve` answers. A running server has the same as an OpenAPI document at `/openapi.json`. A
path with `/v1/` is answered without it too. "role" is what a key needs where the server has keys
([operations](../operations.md)). A refusal has one form: `{"error": {"message", "type", "param", "code"}}`.
"""


def _document(found: list[routes.Route]) -> dict[str, Any]:
    """The server's document, of no model."""
    app = FastAPI(title="Cutaway", openapi_url=None, separate_input_output_schemas=False)
    routes.mount(app, object.__new__(Models), found)  # of no model: nothing is asked
    return openapi.Document(app, AccessPolicy(hosts=None), found)()


def _kind(schema: Mapping[str, Any]) -> str:
    """A schema's type in words."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2].rpartition("__")[2]
    if "const" in schema or "enum" in schema:
        return " or ".join(f'"{one}"' for one in schema.get("enum", [schema.get("const")]))
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " or ".join(dict.fromkeys(_kind(one) for one in schema[choice]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return schema.get("type", "anything")


def _range(schema: Mapping[str, Any]) -> str:
    """The bounds of a number or a list, of the choice that has them."""
    own = [schema, *schema.get("anyOf", ())]
    words = {
        "minimum": "at least {}",
        "exclusiveMinimum": "more than {}",
        "maximum": "at most {}",
        "exclusiveMaximum": "less than {}",
        "maxItems": "at most {} items",
        "maxLength": "at most {} characters",
    }
    return ", ".join(
        dict.fromkeys(text.format(one[name]) for one in own for name, text in words.items() if name in one)
    )


def _fields(schema: Mapping[str, Any]) -> str:
    rows = []
    for name, one in schema.get("properties", {}).items():
        bounds = _range(one)
        kind = _kind(one) + (f" ({bounds})" if bounds else "")
        about = one.get("description", "")
        default = "required" if name in schema.get("required", ()) else code(_json(one.get("default")))
        rows.append((code(name), escaped(kind), default, escaped(about)))
    return table(("field", "type", "default", ""), rows) if rows else "An empty object.\n"


def _json(value: Any) -> str:
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value)) if _plain(value) else str(value)
    )


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def page() -> str:
    """The page of all paths, then the objects that bodies are made of."""
    found = [one for one in routes.found() if one.documented]
    document = _document(found)
    schemas = document["components"]["schemas"]
    parts, bodies = [HEAD, INTRODUCTION, "## Paths\n"], dict[str, None]()
    rows = []
    for route in sorted(found, key=lambda one: (one.path, one.method)):
        about = document["paths"][route.path.replace(":path}", "}")][route.method.lower()].get("summary", "")
        body = "" if route.body is None else route.body.__name__
        bodies |= {body: None} if body else {}
        query = ", ".join(code(name) for name in route.query)
        rows.append(
            (
                code(f"{route.method} {route.path}"),
                escaped(about),
                f"[{body}](#{body.lower()})" if body else query,
                ", ".join(route.roles) or "none",
            )
        )
    parts.append(table(("path", "", "body, or parameters", "role"), rows))
    parts.append("## Bodies, and what is in them\n")
    names = sorted(schemas, key=lambda name: name.rpartition("__")[2])
    seen = set[str]()
    for name in names:
        short = name.rpartition("__")[2]
        if short in ("HTTPValidationError", "ValidationError"):
            continue
        title = short if short not in seen else f"{short} ({name.split('__')[2]})"
        seen.add(short)
        about = escaped(schemas[name].get("description", ""))
        parts.append("\n\n".join(part for part in (f"### {title}", about, _fields(schemas[name])) if part))
    return "\n".join(parts)
