"""JSON schemas that pydantic and zod write, and keywords that grammars do not hold, each asked of SmolLM2.

    python -m scripts.served.ask_schemas            # takes some minutes; --url asks a server that runs

prints of each group how many are answered, valid under `jsonschema`, and have a warning, and names those
that are not valid. Exit code 1 if one is refused, or is not valid without a warning that says so. A server
draws at most 3 samples; an answer that --tokens cut off is counted apart, since no JSON is whole then. zod's
schemas are recorded in scripts/served/schemas/zod.json by the program beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path
from re import Pattern
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import jsonschema
from pydantic import (
    AnyUrl,
    AwareDatetime,
    Base64Bytes,
    BaseModel,
    ByteSize,
    Field,
    HttpUrl,
    IPvAnyAddress,
    Json,
    SecretStr,
    TypeAdapter,
    create_model,
)
from typing_extensions import TypedDict

from cutaway.generate.json_schema import readable
from scripts.lib.serving import served
from tests.serve_examples import RAW


class Letter(Enum):
    """Two letters."""

    A = "a"
    B = "b"


class Number(IntEnum):
    """Two numbers."""

    ONE = 1
    TWO = 2


class Pair(NamedTuple):
    """A named tuple."""

    a: int
    b: bool


class Typed(TypedDict):
    """A typed dict."""

    a: int


@dataclass
class Data:
    """A dataclass."""

    a: int
    b: bool = True


class Leaf(BaseModel):
    """A nested model."""

    kind: Literal["leaf"] = "leaf"
    size: int


class Tree(BaseModel):
    """A recursive model."""

    kind: Literal["tree"] = "tree"
    left: Tree | Leaf | None = None


PYDANTIC: dict[str, Any] = {
    "str": str, "int": int, "float": float, "bool": bool, "bytes": bytes, "Decimal": Decimal, "date": date,
    "datetime": datetime, "time": time, "timedelta": timedelta, "UUID": UUID, "Enum": Letter,
    "IntEnum": Number, "Literal": Literal["a", 1, None], "Optional": int | None, "Union": int | bool | str,
    "list": list[int],
    "set": set[Letter], "frozenset": frozenset[Number], "tuple": tuple[int, bool],
    "tuple of any": tuple[int, ...],
    "dict": dict[str, int], "dict by Enum": dict[Letter, int], "NamedTuple": Pair, "TypedDict": Typed,
    "dataclass": Data, "model": Leaf, "recursive model": Tree, "AnyUrl": AnyUrl, "HttpUrl": HttpUrl,
    "IPv4Address": IPv4Address, "IPv6Address": IPv6Address, "IPv4Network": IPv4Network,
    "IPvAnyAddress": IPvAnyAddress, "Path": Path, "Pattern": Pattern, "SecretStr": SecretStr, "Any": Any,
    "ByteSize": ByteSize, "Base64Bytes": Base64Bytes, "AwareDatetime": AwareDatetime, "Json": Json[list[int]],
    "pattern": Annotated[str, Field(pattern="^[a-z]{2,4}$")], "bounds": Annotated[int, Field(gt=0, le=9)],
    "multiple_of": Annotated[int, Field(multiple_of=5)], "lengths": Annotated[list[int], Field(max_length=2)],
    "discriminator": Annotated[Tree | Leaf, Field(discriminator="kind")],
}  # fmt: skip


def groups() -> dict[str, dict[str, Any]]:
    """The schemas by their names, of each group."""
    fields = {name: create_model("Answer", x=(type, ...)) for name, type in PYDANTIC.items()}
    return {
        "pydantic": {name: TypeAdapter(model).json_schema() for name, model in fields.items()},
        "zod": json.loads((Path(__file__).parent / "schemas" / "zod.json").read_text()),
        "keywords": RAW,
    }


def asked(url: str, schema: dict[str, Any], tokens: int) -> tuple[str, list[str]]:
    """How an answer fits its schema, "valid", "cut off" or why not; and its warnings."""
    body = {
        "messages": [{"role": "user", "content": "Give a short example as JSON."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        "max_tokens": tokens, "seed": 1,
    }  # fmt: skip
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=600) as reply:
            made = json.load(reply)
    except urllib.error.HTTPError as error:
        return f"refused: {error.read().decode()[:300]}", []
    (choice,), warnings = made["choices"], made.get("warnings") or []
    if choice["finish_reason"] == "length":
        return "cut off", warnings
    try:
        plain, _ = readable(schema)  # a pattern that Python's engine does not read is named in a warning
        jsonschema.Draft202012Validator(plain).validate(json.loads(choice["message"]["content"]))
    except (ValueError, jsonschema.ValidationError) as error:
        return f"not valid: {str(error).splitlines()[0][:200]}", warnings
    return "valid", warnings


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--tokens", type=int, default=400, help="of an answer at most")
    options, failed = parser.parse_args(), False
    new = served() if options.url is None else nullcontext(options.url)
    with new as url:
        print(
            "| schemas of | asked | valid | cut off | with a warning | not valid, warned |\n"
            "|---|---|---|---|---|---|"
        )
        for group, schemas in groups().items():
            found = {}
            for n, (name, schema) in enumerate(schemas.items(), 1):
                print(f"\r{group} {n}/{len(schemas)} {name:30}", end="", file=sys.stderr, flush=True)
                found[name] = asked(url, schema, options.tokens)
            print(end="\r", file=sys.stderr)
            fits = [fit for fit, _ in found.values()]
            hopeless = {name for name, (_, warned) in found.items() if "3 samples" in str(warned)}
            excused = {name for name in hopeless if "not valid" in found[name][0]}
            counts = [
                len(found),
                fits.count("valid"),
                fits.count("cut off"),
                sum(bool(w) for _, w in found.values()),
            ]
            print(f"| {group} | {' | '.join(map(str, counts))} | {len(excused)} |", flush=True)
            for name, (fit, warnings) in found.items():
                if fit != "valid":
                    print(f"  {name}: {fit} {warnings}", file=sys.stderr)
                failed = failed or (fit not in ("valid", "cut off") and name not in excused)
    sys.exit(failed)


if __name__ == "__main__":
    main()
