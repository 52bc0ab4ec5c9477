"""What an evaluation's cache lacks, computed by a Ray cluster, a slice of the requests in each task.

Each worker loads the model and asks the whole task, with a cache that computes its slice and then stops. The
results come into this machine's cache, from which the task is scored as ever: the figures are those of one
machine, because a slice has the same requests there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cutaway
from cutaway.evaluate import run, task_registry
from cutaway.evaluate.cache import Cache
from cutaway.evaluate.run import Options
from cutaway.lm import LanguageModel
from cutaway.ray_tasks import each


@dataclass(frozen=True)
class Asked:
    """A task by its name, and how it is asked; ``folder`` is where the name was typed."""

    task: str
    limit: int | None
    unsafe: bool
    options: Options
    threads: int
    folder: str


class RayCache(Cache):
    """A cache for one task, whose missing values a Ray cluster computes.

    ``model`` is the file or folder that each worker loads, with ``loading`` as `cutaway.load`'s arguments.
    """

    def __init__(
        self, lm: LanguageModel, path: Path | None, asked: Asked, model: Path, loading: dict[str, Any]
    ) -> None:
        super().__init__(lm, path)
        self.asked = asked
        self.model = str(model), (*loading.items(),)
        self.before: list[list[Any]] = []  # values of the task's earlier requests, which later ones may read

    def fill(
        self,
        requests: Sequence[Any],
        compute: Callable[[Sequence[int]], Sequence[Any]],
        progress: Callable[[int], None],
    ) -> list[Any]:
        """A value for each request."""
        self.before.append(super().fill(requests, compute, progress))
        return self.before[-1]

    def computed(
        self, slices: Sequence[Sequence[int]], compute: Callable[[Sequence[int]], Sequence[Any]]
    ) -> Iterable[Sequence[Any]]:
        """The values of each slice, in order."""
        jobs = ((*self.model, self.asked, list(self.before), list(numbers)) for numbers in slices)
        return each("evaluating", values, jobs, self.asked.threads)


def values(
    model: str,
    loading: tuple[tuple[str, Any], ...],
    asked: Asked,
    before: list[list[Any]],
    numbers: list[int],
) -> list[Any]:
    """On a worker: the values of these requests, after those that came before."""
    os.chdir(asked.folder)  # a task may be a file there
    task = task_registry.find(asked.task, asked.limit, unsafe=asked.unsafe)
    try:
        run.run_tasks(_loaded(model, loading), task, _Slice(before, numbers), asked.options)
    except _SliceDone as done:
        return done.values
    raise AssertionError(f"{asked.task}: asked for nothing that is kept")


@cache
def _loaded(model: str, loading: tuple[tuple[str, Any], ...]) -> LanguageModel:
    return cutaway.load(model, **dict(loading))


class _Slice(Cache):
    """Gives what it was given, then computes its slice and stops."""

    def __init__(self, before: list[list[Any]], numbers: list[int]) -> None:
        self.before, self.numbers = before, numbers

    def fill(
        self,
        requests: Sequence[Any],
        compute: Callable[[Sequence[int]], Sequence[Any]],
        progress: Callable[[int], None],
    ) -> list[Any]:
        """The next values that are known."""
        if self.before:
            return self.before.pop(0)
        raise _SliceDone(list(compute(self.numbers)))


class _SliceDone(Exception):
    def __init__(self, values: list[Any]) -> None:
        self.values = values
