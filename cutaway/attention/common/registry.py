"""The folder as a registry: its mechanisms, what each costs, and its config in a model of given sizes.

A mechanism's file, and torch with it, is imported only for that mechanism.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from types import ModuleType
from typing import Any, NamedTuple

import cutaway.attention
from cutaway.attention.common.cost import Cost, at
from cutaway.errors import UserError


class Sizes(NamedTuple):
    """The sizes of a model that a mechanism takes over."""

    width: int
    heads: int
    groups: int
    key_size: int
    value_size: int


@dataclass(frozen=True)
class Kind:
    """One file of the folder."""

    name: str
    module: ModuleType

    @property
    def config(self) -> type:
        return self.module.Config

    @property
    def cost(self) -> Cost:
        return self.module.COST

    @property
    def usual(self) -> Mapping[str, int | str]:
        """Usual values of the options without a default: numbers, or formulas of the sizes."""
        return getattr(self.module, "USUAL", {})

    @property
    def reads(self) -> str:
        """``past``, ``all`` of its own text, or a ``memory`` of another."""
        return getattr(self.config, "reads", "past")

    @property
    def summary(self) -> str:
        """The first paragraph of its file's docstring."""
        return " ".join((self.module.__doc__ or "").split("\n\n")[0].replace("``", "").split())

    def usual_in(self, sizes: Sizes) -> dict[str, int]:
        """The usual options, as numbers."""
        letters = dict(zip("dhgkv", sizes, strict=True))
        return {name: max(1, int(at(str(value), **letters))) for name, value in self.usual.items()}

    def like(self, sizes: Sizes, options: Mapping[str, Any]) -> Any:
        """The mechanism's config in a model of these sizes: these options, and usual values for the others.

        Raises UserError if the sizes or options do not fit it.
        """
        known = {f.name: f for f in fields(self.config)}
        given = {"heads": sizes.heads, "kv_heads": sizes.groups, "key_size": sizes.key_size}
        if sizes.value_size != sizes.key_size:
            given["value_size"] = sizes.value_size
        given = {name: value for name, value in given.items() if name in known}
        chosen = given | self.usual_in(sizes) | dict(options)
        missing = [n for n, f in known.items() if n not in chosen and f.default is MISSING]
        if missing:
            raise UserError(f"{self.name} needs a value for {' and '.join(missing)}")
        return self.config(**chosen)


def names() -> list[str]:
    """Every mechanism's name: the files of the folder, none of which is imported."""
    return sorted(
        module.name for module in pkgutil.iter_modules(cutaway.attention.__path__) if not module.ispkg
    )


def kinds() -> list[Kind]:
    """Every mechanism, by name."""
    return [kind(name) for name in names()]


def kind(name: str) -> Kind:
    """The mechanism of this name. UserError if there is none."""
    known = names()
    if name in known:
        module = importlib.import_module(f"cutaway.attention.{name}")
        for part in ("Config", "COST"):
            if not hasattr(module, part):
                raise UserError(f"{name}.py has no {part}: docs/adding-a-mechanism.md shows what one has")
        return Kind(name, module)
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"there is no mechanism {name!r}: {guess}`cutaway attention` lists all {len(known)}")
