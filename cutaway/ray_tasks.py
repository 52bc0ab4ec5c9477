"""Ray tasks: one function over many arguments, its results in order, retried where a worker dies.

What a task computes depends on its arguments alone, so a task that ran twice gives what it gives once. The
cluster's machines must have this package, and what the arguments name by path, at the same place.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from typing import Any, TypeVar

from cutaway.errors import OperationalError, UserError
from cutaway.extras import library

RETRIES = 3  # of a task whose worker died
AHEAD = 1000  # tasks that the cluster is given before the first of them has ended

Result = TypeVar("Result")


def each(
    what: str, function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]], processors: int = 1
) -> Iterator[Result]:
    """``function(*one)`` for each of ``arguments``, by the Ray cluster there is, else by a local Ray.

    A task has so many ``processors``, and the native core as many threads.

    Raises UserError without Ray, what a task raises of this package's errors, and OperationalError where
    workers died more often than tasks are tried.
    """
    ray = library(f"{what} on several machines", "ray")
    task = ray.remote(num_cpus=processors, max_retries=RETRIES)(_with_threads)
    waiting: deque[Any] = deque()
    try:
        with redirect_stdout(sys.stderr):  # Ray tells of dead workers on standard output
            for one in arguments:
                waiting.append(task.remote(processors, function, *one))
                if len(waiting) >= AHEAD:
                    yield ray.get(waiting.popleft())
            while waiting:
                yield ray.get(waiting.popleft())
    except ray.exceptions.RayTaskError as error:  # Ray gives a sentence back amid its own
        if isinstance(error.cause, UserError | OperationalError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise OperationalError(f"{what} on Ray: the workers of a task died: {lines[0]}") from None
    finally:
        for job in waiting:
            ray.cancel(job, force=True)


def _with_threads(threads: int, function: Callable[..., Result], *one: Any) -> Result:
    """On a worker: the core reads how many threads it may use when it is first asked."""
    os.environ["CUTAWAY_THREADS"] = str(threads)
    return function(*one)
