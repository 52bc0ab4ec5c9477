"""The programs by name, and their items: some to train on, others held out."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from random import Random
from typing import Any

from cutaway.data import programs
from cutaway.data.programs.item import Item
from cutaway.errors import OperationalError, UserError, quoted

TRIES = 400  # draws for each item, before a program counts as exhausted


def names() -> list[str]:
    """Every program: a file with ``draw`` and ``solve``."""
    found = [module.name for module in pkgutil.iter_modules(programs.__path__)]
    return sorted(name for name in found if name not in ("item", "registry", "words"))


def items(name: str, count: int, seed: int, *, held_out: bool) -> list[Item]:
    """``count`` items with different questions, from one side of the split; each checked by ``solve``."""
    module = _program(name)
    found: dict[str, Item] = {}
    for item in _drawn(module.draw, Random(f"{name} {seed} {held_out}"), count):
        if item.held_out is not held_out or item.question in found:
            continue
        if module.solve(item.question) != item.answer:
            raise OperationalError(
                f"programs:{name}: internal error: {quoted(item.question)} is answered {quoted(item.answer)} "
                f"and solved {quoted(module.solve(item.question))}"
            )
        found[item.question] = item
        if len(found) == count:
            return list(found.values())
    raise UserError(
        f"programs:{name}: has {len(found):,} different {'held-out ' if held_out else ''}questions, and "
        f"{count:,} were asked for: ask for fewer"
    )


def _drawn(draw: Callable[[Random], Item], random: Random, count: int) -> Iterator[Item]:
    for _ in range(TRIES * max(count, 8)):
        yield draw(random)


def _program(name: str) -> Any:
    if name not in names():
        raise UserError(f"programs:{name}: there is no such program: use {', '.join(names())}")
    return import_module(f"{programs.__name__}.{name}")
