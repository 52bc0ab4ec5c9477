"""The interface of a quantization method: the endings of tensor names, and how a weight is made."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import translate

from cutaway import patterns
from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed
from cutaway.weights.fields import Fields
from cutaway.weights.quantized.stored import Stored

Found = Mapping[str, Packed]  # the tensors of one weight by the endings of their names

# Names of scales of activations or of a cache, which are not quantized here.
ACTIVATIONS = (
    ".input_scale",
    ".input_scale_inv",
    ".activation_scale",
    ".input_zero_point",
    ".input_global_scale",
)
ACTIVATIONS += (
    ".output_scale",
    ".output_zero_point",
    ".k_scale",
    ".kv_scale",
    ".v_scale",
    ".q_scale",
    ".prob_scale",
)


@dataclass(frozen=True)
class Method:
    """How the weights of a folder are quantised.

    ``parts`` are endings of the tensors that say that a weight is quantised, ``main`` that of its numbers
    ("": its own name), ``ending`` what its own name ends in instead; ``weight`` makes one. ``takes``: which
    of the others ``weight`` makes too. ``ignored`` names the modules that are not quantised.
    """

    name: str
    parts: tuple[str, ...]
    weight: Callable[[Stored], Packed]
    main: str = ""
    ending: str = ""
    unused: tuple[str, ...] = ACTIVATIONS
    takes: Callable[[str, Found], bool] | None = None
    bits: int | None = None
    group: int | None = None  # numbers that share a scale; -1, None: a row, a matrix or a block of it
    also: str = ""  # what more there is to say of it
    ignored: tuple[str, ...] = field(default=(), repr=False)
    wildcards: bool = False  # whether ``ignored`` has stars for any text

    @property
    def summary(self) -> str:
        """The method in words: "GPTQ, 4 bits, groups of 128"."""
        bits = f"{self.bits} bits" if self.bits else ""
        group = f"groups of {self.group}" if self.group and self.group > 0 else ""
        return ", ".join(each for each in (self.name, bits, group, self.also) if each)

    def joined(self, theirs: Mapping[str, Packed], where: object) -> dict[str, Packed]:
        """The folder's weights, each quantised one under its own name; UserError for what does not fit."""
        groups: dict[str, dict[str, Packed]] = {}
        endings = sorted({self.main, *self.parts, *self.unused} - {""}, key=len, reverse=True)
        for name, packed in theirs.items():
            ending = next((ending for ending in endings if name.endswith(ending)), "")
            if ending not in self.unused:
                groups.setdefault(name.removesuffix(ending), {})[ending] = packed
        out: dict[str, Packed] = {}
        is_ignored, quantised = self._ignores(), False
        for base, found in groups.items():
            name = base + self.ending
            if not self._quantised(name, found):
                own = {base + ending: packed for ending, packed in found.items()}
                if double := next((each for each in own if each in out), None):
                    raise _double(double, where)
                out |= own
                continue
            quantised = True
            if name in out or (self.main and "" in found):
                raise _double(name, where)
            if is_ignored(name.removesuffix(".weight")):
                raise UserError(
                    f"{where}: the config lists {quoted(name.removesuffix('.weight'))} as not quantized, "
                    "but it is stored quantized: get the folder's own config.json"
                )
            out[name] = self.weight(Stored(name, where, found))
        if not quantised:
            warnings.warn(
                f"{where}: the config says that the weights are quantized as {self.summary}, but none is "
                "stored so: they are read as the floats that they are",
                stacklevel=2,
            )
        return out

    def _quantised(self, name: str, found: Found) -> bool:
        if self.takes is not None and self.takes(name, found):
            return True
        its_own = self.main not in ("", ".weight")  # a name that no plain weight has
        return self.main in found and (its_own or any(part in found for part in self.parts))

    def _ignores(self) -> Callable[[str], bool]:
        """Whether the config leaves a module as it is: the thousands of a mixture are each looked up once."""
        exact = frozenset(self.ignored)
        if self.wildcards:
            starred = [translate(pattern) for pattern in self.ignored if set(pattern) & set("*?[")]
            any_of = re.compile("|".join(starred)) if starred else None
            return lambda module: module in exact or bool(any_of and any_of.match(module))
        searched = [pattern for pattern in self.ignored if pattern.startswith("re:")]
        return lambda module: module in exact or any(matches(pattern, module) for pattern in searched)


def _double(name: str, where: object) -> UserError:
    return UserError(
        f"{where}: the weight {quoted(name)} is stored twice, quantized and as it is: take a folder of one"
    )


def keys(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(re.findall(r"\S+", text))


def matches(pattern: str, module: str) -> bool:
    """Whether a name of a config means this module: by its whole name, or as ``re:`` and a pattern."""
    if not pattern.startswith("re:"):
        return pattern == module
    anchored = rf"\A(?:{pattern[3:]})"
    try:
        return patterns.linear(anchored, "the config").search(module) is not None
    except UserError:
        return patterns.search(anchored, module)


def listed(fields: Fields, *keys: str) -> tuple[str, ...]:
    """The names that the first of these keys lists, () where none of them is there."""
    found: tuple[str, ...] = ()
    for key in keys:
        value = fields.get(key)
        if value is None:
            continue
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise fields.refusal(key, f"should be a list of names, but is {quoted(value)}")
        found = found or tuple(value)
    return found
