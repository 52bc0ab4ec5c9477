"""Typed reading of untrusted settings: a ``config.json`` or a GGUF file's metadata.

Each reader names the type it needs. A value that is missing, of another type or out of bounds is refused with
its name. ``finish`` refuses the keys that no reader asked for, so that no setting is ignored silently; those
that transformers' own class of the model does not read either are warned of, unless ``strict``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import Later, Packed
from cutaway.weights import class_keys

MISSING: Any = object()
MOST = 1e30  # of a number
COUNT = 1 << 31  # no size in a config is larger than this
LAYERS = 10_000
EXPERTS = 1024
OLDER = {  # words for kinds of layers, and what transformers 5 calls them
    "mamba": "linear_attention",
    "attention": "full_attention",
    "deepseek_sparse_attention": "indexed_attention",
}
Announced = Mapping[str, Packed | Later]  # weights of which only types and shapes are read


class UnreadKeys(UserWarning):
    """Keys of a config.json that change nothing, because no model of its type reads them."""


class Fields:
    """Settings by key; ``prefix`` is put before each (GGUF's ``llama.``), ``tensors`` are a GGUF file's.

    ``kind`` is the ``model_type`` of the config.json that they are of, whose ``strict`` reader warns of none.
    """

    def __init__(
        self,
        data: Mapping[str, object],
        where: object,
        prefix: str = "",
        tensors: Announced | None = None,
        kind: str = "",
        strict: bool = False,
    ) -> None:
        self.data = data
        self.where = where
        self.prefix = prefix
        self.kind = kind
        self.strict = strict
        self.gguf = tensors is not None
        self.tensors: Announced = tensors or {}
        self.used: set[str] = set()

    def refusal(self, name: str, why: str) -> UserError:
        return UserError(f"{self.where}: {self.prefix}{name} {why}")

    def has(self, name: str) -> bool:
        return self.prefix + name in self.data

    def get(self, name: str) -> object:
        """The plain value, or None if it is absent or null; the key counts as used."""
        self.used.add(self.prefix + name)
        return _plain(self.data.get(self.prefix + name))

    def integer(self, name: str, default: Any = MISSING, low: int = 1, high: int = COUNT) -> Any:
        """A whole number between ``low`` and ``high``."""
        value = self._typed(name, default, int, "a whole number")
        if value is not default and not low <= value <= high:
            raise self.refusal(name, f"should be between {low} and {high}, but is {value}")
        return value

    def number(self, name: str, default: Any = MISSING, low: float = 0.0, high: float = MOST) -> Any:
        """A number above ``low`` and at most ``high``."""
        value = self._typed(name, default, (int, float), "a number")
        if value is default:
            return value
        if not low < value <= high:
            raise self.refusal(name, f"should be above {low:g} and at most {high:g}, but is {value}")
        return float(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of positive numbers."""
        value = self.get(name)
        if not isinstance(value, list) or any(
            type(n) not in (int, float) or not 0 < n <= MOST for n in value
        ):
            raise self.refusal(name, f"should be a list of positive numbers, but is {quoted(value)}")
        return tuple(float(n) for n in value)

    def flag(self, name: str, default: Any = MISSING) -> Any:
        return self._typed(name, default, bool, "true or false")

    def text(self, name: str, default: Any = MISSING) -> Any:
        return self._typed(name, default, str, "a text")

    def choice(self, name: str, choices: Mapping[str, Any], default: Any = MISSING) -> Any:
        """The value of one of several words."""
        value = self.text(name, default)
        if value not in choices:
            raise self.refusal(name, f"is {quoted(value)}, not one of {', '.join(choices)}")
        return choices[value]

    def section(self, name: str) -> Fields | None:
        """The entries inside an entry, or None if it is absent or null."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refusal(name, f"should hold entries by name, but is {quoted(value)}")
        prefix = f"{self.prefix}{name}."
        inside = {f"{prefix}{inner}": entry for inner, entry in value.items()}
        return Fields(inside, self.where, prefix, kind=self.kind, strict=self.strict)

    def each_layer(self, name: str, layers: int, choices: Sequence[str]) -> list[str] | None:
        """A list of one word a layer (``layer_types``), or None if it is absent or null."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != layers:
            raise self.refusal(name, f"should list {layers} words, one a layer, but is {quoted(value)}")
        value = [
            word if word in choices else OLDER.get(word, word) for word in value if isinstance(word, str)
        ]
        if len(value) != layers:
            raise self.refusal(name, "should list words alone")
        if wrong := [word for word in value if word not in choices]:
            raise self.refusal(name, f"has {quoted(wrong[0])}, not one of {', '.join(choices)}")
        return value

    def indices(self, name: str, layers: int) -> list[int] | None:
        """A list of layers by their numbers, or None if it is absent or null."""
        value = self.get(name)
        if value is not None and not (
            isinstance(value, list) and all(type(n) is int and 0 <= n < layers for n in value)
        ):
            raise self.refusal(name, f"should list layers below {layers}, but is {quoted(value)}")
        return value

    def only(self, name: str, accepted: Collection[object], meaning: str) -> None:
        """UserError if the key is present with a value that this model cannot honour."""
        value = self.get(name)
        if self.has(name) and not any(_equal(value, one) for one in accepted):
            raise self.refusal(name, f"is {quoted(value)}: {meaning} is not supported")

    def same(self, name: str, count: int) -> Fields:
        """These fields, with one number where an array repeats it ``count`` times."""
        value = self.get(name)
        if not isinstance(value, np.ndarray) or value.shape != (count,) or (value != value[0]).any():
            return self
        return Fields({self.prefix + name: value[0]}, self.where, self.prefix, self.tensors)

    def stated(self, name: str) -> bool:
        """Whether the key is present; UserError if it is null."""
        if self.has(name) and self.get(name) is None:
            raise self.refusal(name, "is null: give it a value, or remove the key")
        return self.has(name)

    def finish(
        self, harmless: Collection[str], who: str, repeats: Callable[[str], bool] = lambda _: False
    ) -> None:
        """UserError for a key that was not read, holds a value and matches no pattern in ``harmless``.

        ``repeats`` says of a key whether it says again what is computed. Keys that transformers does not read
        in a config of this kind are warned of, all in one sentence.
        """
        unread = []
        for key in tuple(self.data):
            name = key.removeprefix(self.prefix)
            if not key.startswith(self.prefix) or key in self.used or self.data[key] is None:
                continue
            if any(fnmatchcase(name, pattern) for pattern in harmless):
                continue
            if not self.gguf and repeats(name):
                continue
            shown, asked = f"{quoted(key)} is {quoted(_plain(self.data[key]))}", class_keys.of(self.kind)
            if self.strict or asked is None or name in asked:
                raise UserError(
                    f"{self.where}: {shown}, and {who} no such setting here: "
                    "remove it if it does not change what the model computes"
                )
            unread.append(shown)
        if unread:
            found = f"{', '.join(unread)}: without effect, since no {self.kind} model of transformers reads "
            found += "it" if len(unread) == 1 else "them"
            warnings.warn(f"{self.where}: {found} (refused by strict loading)", UnreadKeys, stacklevel=2)

    def _typed(self, name: str, default: Any, types: type | tuple[type, ...], wanted: str) -> Any:
        value = self.get(name)
        if value is None:
            if default is MISSING:
                raise self.refusal(name, f"is missing: it should be {wanted}")
            return default
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            raise self.refusal(name, f"should be {wanted}, but is {quoted(value)}")
        return value


def _plain(value: object) -> object:
    """Python's own numbers; a float32 becomes the shortest decimal that rounds to it."""
    if type(value) is np.float32:
        return float(str(value))
    return value.item() if isinstance(value, np.generic) else value


def _equal(value: object, accepted: object) -> bool:
    """Equality of plain values, where true is not 1 and an array is never a scalar."""
    same_kind = isinstance(value, bool) == isinstance(accepted, bool)
    return same_kind and not isinstance(value, np.ndarray) and value == accepted
