"""The probes by name, one file each in ``probes/``, and how they run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway.errors import UserError
from cutaway.security.finding import Budget, Finding

if TYPE_CHECKING:
    from cutaway.lm import LanguageModel


def names(*, trains: bool = True) -> list[str]:
    """The probes; without ``trains`` those that train no model."""
    found = sorted(path.stem for path in (Path(__file__).parent / "probes").glob("[!_]*.py"))
    return [name for name in found if trains or not getattr(_probe(name), "TRAINS", False)]


def _probe(name: str) -> Any:
    return import_module(f"cutaway.security.probes.{name}")


def check_probes(probes: Iterable[str]) -> None:
    """UserError for a name that is no probe."""
    for name in probes:
        if name not in names():
            raise UserError(f"there is no probe {name!r}: use {', '.join(names())}")


def run_probes(
    lm: LanguageModel,
    probes: Sequence[str],
    *,
    seed: int = 0,
    budget: Budget,
    progress: Callable[[str, int, int], None] = lambda probe, done, total: None,
) -> list[Finding]:
    """The findings of these probes, in their order, each with the seconds that its probe took."""
    check_probes(probes)
    found: list[Finding] = []
    for name in probes:
        started = time.perf_counter()
        own = _probe(name).run(
            lm, seed=seed, budget=budget, progress=lambda done, total, name=name: progress(name, done, total)
        )
        seconds = round(time.perf_counter() - started, 1)
        found += [replace(finding, seconds=finding.seconds or seconds) for finding in own]
    return found
