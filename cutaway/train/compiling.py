"""Decide whether torch.compile pays: the time it saves in a run against the time it takes. No torch.

What it saves was measured (docs/results/training.md): 4 to 13% of a step on a CPU where all weights are
trained, nothing beside a frozen base. How long it takes is measured by each run that compiles and kept in
Cutaway's folder; before the first one it is what 30 layers took on two cores of a server, a layer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from cutaway import store
from cutaway.errors import OperationalError
from cutaway.store import files

SECONDS_A_LAYER = 9.4
ALIKE = 4.0  # times as many layers: what a model of fewer or more took says little of this one
SAVED = {"cpu": 0.12}  # of a run's seconds where all weights are trained
SAVED_ELSEWHERE = 0.3
MEASURED = "compile.json"
Note = Callable[[str], None]


def seconds(layers: int) -> float:
    """How long compiling a model of so many layers takes on this machine."""
    known = {n: took for n, took in _known().items() if 1 / ALIKE <= n / layers <= ALIKE}
    if not known:
        return layers * SECONDS_A_LAYER
    nearest = min(known, key=lambda n: abs(math.log(n / layers)))
    return known[nearest] * layers / nearest


def measured(layers: int, took: float) -> None:
    """Keep how long compiling took, for the next run's estimate; a full disk loses no run."""
    with suppress(OSError, OperationalError):
        _path().parent.mkdir(parents=True, exist_ok=True)
        files.write_file(_path(), json.dumps(_known() | {layers: took}))


def _known() -> dict[int, float]:
    """The seconds that were measured, by layers; of a damaged file none."""
    try:
        return {int(layers): float(took) for layers, took in json.loads(_path().read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def saves(run_seconds: float, device: str, frozen: bool) -> float:
    """The seconds of a run that torch.compile saves on this kind of device; ``frozen``: beside a base."""
    return run_seconds * (0.0 if frozen and device == "cpu" else SAVED.get(device, SAVED_ELSEWHERE))


@contextmanager
def watched(estimate: float, note: Note) -> Iterator[None]:
    """Say, each time that twice as long has passed, that compiling takes longer than was estimated."""
    ended = Event()

    def watch() -> None:
        late = max(1.0, estimate)
        while not ended.wait(late):
            note(
                f"torch.compile takes longer than the {estimate:.0f} s that were estimated: Ctrl-C stops it, "
                "and --compile never trains without it."
            )
            late *= 2

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _path() -> Path:
    return store.home() / MEASURED
