"""A config read by name and type: a ``config.json`` or a GGUF file's metadata, written by anyone.

Each reader says what it wants; what is missing, of another type or outside sensible bounds is refused with
its name and its value. Numbers that GGUF stores in 32 bits come back as the shortest decimal that they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cutaway.errors import UserError

MISSING: Any = object()
COUNT = 1 << 31  # no size in a config is larger than this
LAYERS = 10_000
EXPERTS = 1024


class Fields:
    """Entries by name; ``prefix`` is put before each (GGUF's ``llama.``)."""

    def __init__(self, data: Mapping[str, object], where: object, prefix: str = "") -> None:
        self.data = data
        self.where = where
        self.prefix = prefix

    def refusal(self, name: str, why: str) -> UserError:
        return UserError(f"{self.where}: {self.prefix}{name} {why}")

    def get(self, name: str) -> object:
        """The plain value, or None if it is absent or null."""
        return _plain(self.data.get(self.prefix + name))

    def integer(self, name: str, default: Any = MISSING, low: int = 1, high: int = COUNT) -> Any:
        """A whole number between ``low`` and ``high``."""
        value = self._value(name, default, "a whole number")
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refusal(name, f"should be a whole number, but is {_shown(value)}")
        if not low <= value <= high:
            raise self.refusal(name, f"should be between {low} and {high}, but is {value}")
        return value

    def number(self, name: str, default: Any = MISSING, low: float = 0.0, high: float = 1e30) -> Any:
        """A number above ``low`` and at most ``high``."""
        value = self._value(name, default, "a number")
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refusal(name, f"should be a number, but is {_shown(value)}")
        if not low < value <= high:
            raise self.refusal(name, f"should be above {low:g} and at most {high:g}, but is {value}")
        return float(value)

    def flag(self, name: str, default: Any = MISSING) -> Any:
        value = self._value(name, default, "true or false")
        if value is not default and not isinstance(value, bool):
            raise self.refusal(name, f"should be true or false, but is {_shown(value)}")
        return value

    def text(self, name: str, default: Any = MISSING) -> Any:
        value = self._value(name, default, "a text")
        if value is not default and not isinstance(value, str):
            raise self.refusal(name, f"should be a text, but is {_shown(value)}")
        return value

    def choice(self, name: str, choices: Mapping[str, Any], default: Any = MISSING) -> Any:
        """What one of several words stands for."""
        value = self.text(name, default)
        if value not in choices:
            raise self.refusal(
                name, f"is {_shown(value)}, which is not supported; supported: {', '.join(choices)}"
            )
        return choices[value]

    def section(self, name: str) -> Fields | None:
        """The entries inside an entry, or None if it is absent."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refusal(name, f"should hold entries by name, but is {_shown(value)}")
        prefix = f"{self.prefix}{name}."
        return Fields({f"{prefix}{inner}": entry for inner, entry in value.items()}, self.where, prefix)

    def only(self, name: str, accepted: object, meaning: str) -> None:
        """Refuses an entry that is there and is not what this model can honour."""
        value = self.get(name)
        if value is not None and value != accepted:
            raise self.refusal(name, f"is {_shown(value)}: {meaning} is not supported")

    def _value(self, name: str, default: Any, wanted: str) -> Any:
        value = self.get(name)
        if value is not None:
            return value
        if default is MISSING:
            raise self.refusal(name, f"is missing: it should be {wanted}")
        return default


def _plain(value: object) -> object:
    """Python's own numbers, and one number where an array repeats it for every layer."""
    if type(value) is np.float32:
        return float(str(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
        return _plain(value[0])
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def each_layer(fields: Fields, name: str, layers: int, choices: Sequence[str]) -> list[str] | None:
    """A list of one word a layer (``layer_types``), or None if it is absent."""
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != layers:
        raise fields.refusal(
            name, f"should list one word for each of {layers} layers, but is {_shown(value)}"
        )
    for word in value:
        if word not in choices:
            raise fields.refusal(
                name, f"has {_shown(word)}, which is not supported; supported: {', '.join(choices)}"
            )
    return value
