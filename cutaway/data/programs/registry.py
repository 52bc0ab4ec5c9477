"""The programs by name, and their items: some to train on, others held out."""

from __future__ import annotations

import pkgutil
from collections import Counter
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


def items(name: str, count: int, seed: int, *, held_out: bool, repeats: int = 1) -> list[Item]:
    """``count`` items from one side of the split, checked by ``solve``; a question up to ``repeats`` times.

    Of some kinds there are few questions (seven weekdays): without repeats they are lost among the others.
    """
    module = _program(name)
    found: list[Item] = []
    times: Counter[str] = Counter()
    for item in _drawn(module.draw, Random(f"{name} {seed} {held_out}"), count):
        if item.held_out is not held_out or times[item.question] == repeats:
            continue
        if module.solve(item.question) != item.answer:
            raise OperationalError(
                f"programs:{name}: internal error: {quoted(item.question)} is answered {quoted(item.answer)} "
                f"and solved {quoted(module.solve(item.question))}"
            )
        times[item.question] += 1
        found.append(item)
        if len(found) == count:
            return found
    raise UserError(
        f"programs:{name}: has {len(times):,} different {'held-out ' if held_out else ''}questions, and "
        f"{count:,} were asked for: ask for fewer"
    )


def _drawn(draw: Callable[[Random], Item], random: Random, count: int) -> Iterator[Item]:
    for _ in range(TRIES * max(count, 8)):
        yield draw(random)


def _program(name: str) -> Any:
    if name not in names():
        raise UserError(f"programs:{name}: there is no such program: use {', '.join(names())}")
    return import_module(f"{programs.__name__}.{name}")
