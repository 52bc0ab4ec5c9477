"""The training runs below one folder. No name of a request and no link leads out of it."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cutaway.errors import OperationalError, UserError
from cutaway.serve.api_error import APIError
from cutaway.serve.runs.log import Log
from cutaway.store import yaml_files
from cutaway.train.curve import METRICS
from cutaway.train.folder import CHECKPOINTS, MODEL, SAMPLES, TOKENIZER
from cutaway.weights.load import ADAPTER, RUN

DEEPEST = 5  # folders below the one that is served
MOST = 500  # runs
VISITED = 5_000  # folders
OWN = {CHECKPOINTS, MODEL, TOKENIZER, "data", "best", "tensorboard", "wandb"}  # of a run
QUIET = 120.0  # seconds without a new line after which a run that is not finished counts as stopped
LOGS = 16  # runs whose logs are kept parsed
EXPERIMENT = "experiment.yaml"  # in the folder of `cutaway compare`, whose arms' runs are below it
STEP = "step-{:08}"


@dataclass
class Runs:
    """The runs below ``root``, which may be one run itself. All errors name paths from there on."""

    root: Path
    _logs: OrderedDict[str, Log] = field(default_factory=OrderedDict)
    _configs: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict)
    _heads: dict[str, tuple[tuple[int, int], int, float | None]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.root = self.root.resolve()

    # ---- places ------------------------------------------------------------------------------------------

    def folder(self, run: str) -> Path:
        """The folder of a run; APIError where there is none of this name."""
        parts = PurePosixPath(run).parts
        plain = 0 < len(parts) <= DEEPEST and run == "/".join(parts) and "\0" not in run and "\\" not in run
        if plain and not set(parts) & {"..", "."} and not run.startswith("/"):
            single = run == self.root.name and (self.root / RUN).is_file()
            found = self.root if single else self.root.joinpath(*parts)
            if self._is_inside(found) and self._is_run(found):
                return found
        raise APIError(404, f"There is no run {run[:100]!r} here", param="run", code="not_found")

    def checkpoint(self, run: str, step: int) -> Path:
        """A checkpoint's folder; APIError where the run has none of this step, or a file of it is a link."""
        folder = self.folder(run)
        found = folder / CHECKPOINTS / STEP.format(step)
        if not self._is_inside(found) or not found.is_dir():
            steps = self.checkpoints(folder)
            known = f"it has those of {', '.join(map(str, steps[:20]))}" if steps else "it has none"
            text = f"{run} has no checkpoint of step {step}: {known}"
            raise APIError(404, text, param="step", code="not_found")
        read = [folder / RUN, *found.rglob("*"), *(folder / TOKENIZER).glob("*")]
        if not all(map(self._is_inside, read)):
            text = f"{run}: a file of checkpoint {step} is a link to outside of the folder of runs"
            raise APIError(403, text, param="step", code="outside")
        return found

    def _is_run(self, folder: Path) -> bool:
        try:
            return self._is_inside(folder / RUN) and (folder / RUN).is_file()
        except OSError:  # a name that is too long
            return False

    def _is_inside(self, path: Path) -> bool:
        """Whether a path is below the root once all links are followed."""
        try:
            return path.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError, ValueError):  # a circle of links, a name that is too long
            return False

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of files in this block name no path of the machine."""
        try:
            yield
        except (UserError, OperationalError) as error:
            text = str(error).replace(f"{self.root}{os.sep}", "").replace(str(self.root), self.root.name)
            raise APIError(400, text, param="run", code="unreadable") from None

    # ---- what is in them -----------------------------------------------------------------------------------

    def listed(self) -> list[dict[str, Any]]:
        """All runs, the one that changed last first."""
        found = [self._entry(*one) for one in self._found()]
        return sorted(found, key=lambda one: (-one["updated"], one["id"]))

    def _found(self) -> Iterator[tuple[str, Path, str | None]]:
        """Each run's id, its folder, and the experiment that it is an arm of."""
        if (self.root / RUN).is_file():
            yield self.root.name, self.root, None
        runs = 0
        for visited, (place, folders, files) in enumerate(os.walk(self.root, followlinks=False)):
            at = Path(place)
            parts = at.relative_to(self.root).parts
            is_run = RUN in files
            folders[:] = sorted(set(folders) - (OWN if is_run else set()))
            if len(parts) >= DEEPEST or visited > VISITED:
                folders.clear()
            if is_run and parts and self._is_inside(at / RUN):
                yield "/".join(parts), at, self._experiment(at)
                runs += 1
            if runs >= MOST or visited > VISITED:
                return

    def _experiment(self, folder: Path) -> str | None:
        above = [one for one in folder.parents if one == self.root or self.root in one.parents]
        found = next((one for one in above if (one / EXPERIMENT).is_file()), None)
        return None if found is None else found.relative_to(self.root).as_posix().replace(".", self.root.name)

    def _entry(self, id: str, folder: Path, experiment: str | None) -> dict[str, Any]:
        try:
            step, loss = self._head(id, folder)
            config, wrong = self.config(folder), None
        except APIError as error:
            step, loss, config, wrong = 0, None, {}, str(error)
        steps = config.get("steps")
        steps = steps if isinstance(steps, int) and steps > 0 else None
        updated = self._changed(folder)
        done = steps is not None and step >= steps
        state = "finished" if done else "running" if time.time() - updated < QUIET else "stopped"
        return {
            "id": id,
            "state": state,
            "step": step,
            "steps": steps,
            "loss": loss,
            "objective": _kind(config),
            "adapter": _name(config.get("adapter")),
            "base": config.get("base") if isinstance(config.get("base"), str) else None,
            "checkpoints": self.checkpoints(folder),
            "experiment": experiment,
            "has_model": (folder / MODEL).is_dir() or (folder / ADAPTER).is_file(),
            "updated": updated,
            **({} if wrong is None else {"error": wrong}),
        }

    def _head(self, id: str, folder: Path) -> tuple[int, float | None]:
        """The step and the loss that a run has reached; its log is read where it changed."""
        try:
            found = (folder / METRICS).stat()
            state = found.st_mtime_ns, found.st_size
        except OSError:
            state = 0, 0
        known = self._heads.get(id)
        if known is None or known[0] != state:
            log = self.log(id, folder)
            known = self._heads[id] = (state, log.step, log.last("loss"))
        return known[1:]

    @staticmethod
    def _changed(folder: Path) -> float:
        """When the run last wrote a line of its log."""
        for name in (METRICS, RUN):
            try:
                return (folder / name).stat().st_mtime
            except OSError:
                continue
        return 0.0

    def checkpoints(self, folder: Path) -> list[int]:
        """The steps of a run's checkpoints, first to last."""
        if not self._is_inside(folder / CHECKPOINTS):
            return []
        try:
            names = [
                one.name for one in os.scandir(folder / CHECKPOINTS) if one.is_dir(follow_symlinks=False)
            ]
        except OSError:
            return []
        digits = [name.removeprefix("step-") for name in names if name.startswith("step-")]
        return sorted(int(one) for one in digits if len(one) == 8 and one.isascii() and one.isdecimal())

    def config(self, folder: Path) -> dict[str, Any]:
        """The entries of the run's run.yaml, read again where it changed."""
        path, key = folder / RUN, str(folder)
        with self.errors():
            if not self._is_inside(path):
                raise UserError(f"{path}: is a link to outside of the folder of runs")
            changed = path.stat().st_mtime
            known = self._configs.get(key)
            if known is None or known[0] != changed:
                known = self._configs[key] = (changed, yaml_files.parsed(path))
        return known[1]

    def log(self, run: str, folder: Path) -> Log:
        """The run's log as far as it is written. APIError for one that cannot be read."""
        paths = [folder / METRICS, folder / SAMPLES]
        with self._lock, self.errors():
            if wrong := [one for one in paths if one.exists() and not self._is_inside(one)]:
                raise UserError(f"{wrong[0]}: is a link to outside of the folder of runs")
            log = self._logs.pop(run, None) or Log()
            log.update(*paths)
            self._logs[run] = log
            while len(self._logs) > LOGS:
                self._logs.popitem(last=False)
            return log


def _kind(config: dict[str, Any]) -> str:
    """What a run learns by: the name of its objective."""
    data = config.get("data")
    plain = "pretrain" if isinstance(data, dict) and "sources" in data else "sft"
    plain = "grpo" if isinstance(data, dict) and "task" in data else plain
    return _name(config.get("objective")) or plain


def _name(entry: Any) -> str | None:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    return kind if isinstance(kind, str) else None
