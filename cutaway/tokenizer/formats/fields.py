"""JSON of unknown origin, read with the type of every field checked: an error names the file and
the field.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from cutaway.errors import UserError, quoted
from cutaway.tokenizer.unicode import utf8

T = TypeVar("T")
MOST_TOKENS = 1 << 20  # the largest vocabulary of a published model has 901,629


def limited(count: int, where: str, what: str = "tokens", most: int = MOST_TOKENS) -> None:
    """Raises UserError for a vocabulary that would fill the memory."""
    if count > most:
        raise UserError(f"{where} holds {count:,} {what}; the limit is {most:,}")


def parsed(data: bytes, name: str) -> "Fields":
    """A JSON object. Raises UserError for anything else."""
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{name} is not JSON: {problem}") from None
    if "\\ud" in text.lower():  # an escape may spell half a surrogate pair
        utf8(json.dumps(value, ensure_ascii=False), name)
    if not isinstance(value, dict):
        raise UserError(f"{name} holds no JSON object")
    return Fields(value, name)


@dataclass(frozen=True)
class Fields:
    """A JSON object at a place in a file; a null field is an absent one."""

    value: dict[str, Any]
    where: str

    def has(self, key: str) -> bool:
        return self.value.get(key) is not None

    def get(self, key: str, kind: type[T], default: T) -> T:
        """A field of a type, or the default where there is none."""
        value = self.value.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise UserError(f"{self.where}: {key} is {quoted(value)}, not {_NAMES.get(kind, kind.__name__)}")
        return value

    def need(self, key: str, kind: type[T]) -> T:
        """A field of a type. Raises UserError where there is none."""
        if not self.has(key):
            raise UserError(f"{self.where} has no {key}")
        return self.get(key, kind, kind())

    def sub(self, key: str) -> "Fields":
        """The object in a field."""
        return Fields(self.need(key, dict), f"{self.where}: {key}")

    def subs(self, key: str) -> Iterator["Fields"]:
        """The objects in a list."""
        for i, value in enumerate(self.get(key, list, [])):
            if not isinstance(value, dict):
                raise UserError(f"{self.where}: {key}[{i}] is {quoted(value)}, not an object")
            yield Fields(value, f"{self.where}: {key}[{i}]")

    def kind(self) -> str:
        """The `type` of a part of a tokenizer."""
        return self.need("type", str)


_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a whole number",
}
