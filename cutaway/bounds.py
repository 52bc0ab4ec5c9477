"""The range of each field of a config: ``heads: Count`` is a whole number of 1 or more. Imports no torch.

A config that inherits ``Bounded`` checks every field when it is made, so that a file, an option and Python
code get the same error.
"""

from __future__ import annotations

import math
import sys
import typing
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal

from cutaway.errors import UserError, quoted


@dataclass(frozen=True)
class Bound:
    """A finite number from ``low`` to ``high``; ``above`` and ``below`` leave out the end itself."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """NaN and infinity are outside every bound."""
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        return low and high and is_finite(value)

    def __str__(self) -> str:
        low = f"more than {self.low}" if self.above else f"{self.low} or more"
        if self.high == math.inf:
            return low
        if self.above or self.below:
            return f"{low} and {'less than' if self.below else 'at most'} {self.high}"
        return f"from {self.low} to {self.high}"


def is_finite(value: float) -> bool:
    """Whether a number is neither NaN nor infinite nor, as a whole number may be, beyond every float."""
    return abs(value) <= sys.float_info.max


Count = Annotated[int, Bound(1)]
Natural = Annotated[int, Bound(0)]
Positive = Annotated[float, Bound(0, above=True)]
NonNegative = Annotated[float, Bound(0)]
Fraction = Annotated[float, Bound(0, 1)]
Decay = Annotated[float, Bound(0, 1, below=True)]
Inner = Annotated[float, Bound(0, 1, above=True, below=True)]


class Shown:
    """A dataclass that says whose it is where it is called Config, as many are: gqa.Config(heads=9, ...)."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__name__ == "Config":  # before ``dataclass``, which leaves a class's own __repr__ alone
            cls.__repr__ = _shown


def _shown(self: Any) -> str:
    values = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.repr)
    return f"{type(self).__module__.rpartition('.')[2]}.Config({values})"


class Bounded(Shown):
    """A dataclass whose numbers keep within the bounds of their types, and whose words are those it lists."""

    def __post_init__(self) -> None:
        cls = type(self)
        _, topic, *rest = cls.__module__.split(".")
        where = f"{topic}.{rest[-1]}" if cls.__name__ == "Config" and rest else topic
        for name, hint in bounds_of(cls).items():
            check(getattr(self, name), hint, f"{where}.{name}")


@cache
def bounds_of(cls: type) -> dict[str, Any]:
    """The type of each field, bounds included."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in fields(cls)}  # type: ignore[arg-type]


def check(value: Any, hint: Any, where: str) -> None:
    """UserError if a number of this type is out of its bounds, or a word is not one of its choices."""
    if value is None:
        return
    for option in typing.get_args(hint) if typing.get_origin(hint) in UNIONS else (hint,):
        origin, inner = typing.get_origin(option), typing.get_args(option)
        if origin is tuple and isinstance(value, tuple):
            for i, item in enumerate(value):
                check(item, inner[0], f"{where}[{i}]")
        elif origin is Literal and value not in inner:
            raise UserError(f"{where} is {quoted(value)}; it must be {' or '.join(map(repr, inner))}")
        elif origin is Annotated and isinstance(value, int | float):
            for bound in inner[1:]:
                if not bound.holds(value):
                    raise UserError(f"{where} is {value}; it must be {bound}")


UNIONS = (typing.Union, type(int | None))
