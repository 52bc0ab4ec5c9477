"""A pipeline's folder: which stages are done, of which inputs, and how long they took. Imports no torch.

A stage's folder has done.json once it is whole: the digest of its inputs (its config, and the files of the
stages that it names) and of what it left. A stage whose inputs have another digest is not done.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cutaway.bounds import is_finite
from cutaway.errors import UserError, quoted
from cutaway.pipeline.config import PIPELINE, Pipeline, own_paths, read_pipeline, written
from cutaway.pipeline.verbs import VERBS
from cutaway.store import yaml_files
from cutaway.store.files import check_folder, digest, disk_errors, write_file
from cutaway.store.reading import parsed

DONE, TIMES, ENERGY, PLAN, LOCK = "done.json", "times.json", "energy.json", "plan.json", ".lock"
PASSED_OVER = (DONE,)
STARTED = ("configs", "logs", "probes", TIMES)  # what the first stage leaves, however it ends
FIXED = ("budget", "threads", "processes", "sized")  # what a run keeps


@dataclass(frozen=True)
class Folder:
    """The folder of one run of a pipeline."""

    path: Path
    pipeline: Pipeline

    def stage(self, name: str) -> Path:
        """A stage's own folder."""
        return self.path / name

    def log(self, name: str) -> Path:
        """What a stage printed."""
        return self.path / "logs" / f"{name}.log"

    # ---- configs -------------------------------------------------------------------------------------------

    def config_path(self, name: str) -> Path:
        """The config that a stage was started with, which it keeps."""
        return self.path / "configs" / f"{name}.yaml"

    def config(self, name: str) -> dict[str, Any]:
        """A stage's config as it was started, or else as the pipeline has it."""
        kept = self.config_path(name)
        return yaml_files.parsed(kept) if kept.is_file() else dict(self.pipeline[name].config)

    def keep_config(self, name: str, config: dict[str, Any]) -> None:
        """Fix a stage's config, before it starts."""
        with disk_errors(self.path):
            self.config_path(name).parent.mkdir(parents=True, exist_ok=True)
        text = yaml.dump(config, Dumper=yaml_files.Dumper, sort_keys=False, allow_unicode=True)
        write_file(self.config_path(name), text)

    def begin(self, name: str, resumes: bool) -> None:
        """Note of which inputs a stage is begun. UserError where one that ``resumes`` had others."""
        path, now = self.config_path(name).with_suffix(".json"), {"inputs": self.inputs(name)}
        if resumes and path.is_file() and parsed(path) != now:
            raise UserError(self._changed(name, "was begun with"))
        write_file(path, json.dumps(now))

    # ---- done ----------------------------------------------------------------------------------------------

    def inputs(self, name: str) -> str:
        """The digest of all that a stage depends on."""
        stage, found = self.pipeline[name], hashlib.sha256()
        found.update(json.dumps([stage.verb, self.config(name)], sort_keys=True).encode())
        found.update(str(self.pipeline.threads).encode() if VERBS[stage.verb].trains else b"")
        for other in self.pipeline.upstream(name):
            found.update(f"{other} {self.left(other)}".encode())
        for file in sorted(_own_files(self.config(name))):
            found.update(f"{file} {digest(file)}".encode())
        return found.hexdigest()

    def left(self, name: str) -> str:
        """The digest of the files that a stage left for others."""
        folder, found = self.stage(name), hashlib.sha256()
        patterns = VERBS[self.pipeline[name].verb].left
        files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
        for path in sorted(files):
            if path.name not in PASSED_OVER and not path.name.startswith("."):
                found.update(f"{path.relative_to(folder)} {digest(path)}".encode())
        return found.hexdigest()

    def mark(self, name: str) -> dict[str, Any] | None:
        """What a stage that is done says of itself. UserError for a file that is none of ours."""
        path = self.stage(name) / DONE
        if not path.is_file():
            return None
        found = _read(path, "remove the stage's folder, to make it again")
        if not isinstance(found.get("inputs"), str):
            raise UserError(f"{path}: does not say of which inputs the stage was made: remove its folder")
        return found

    def done(self) -> list[str]:
        """The stages that have a mark, which no file was compared with."""
        return [name for name in self.pipeline.names if self.mark(name) is not None]

    def is_done(self, name: str) -> bool:
        """Whether a stage is whole. UserError where its inputs, or the files that it left, are others now."""
        mark = self.mark(name)
        if mark is None:
            return False
        if mark["inputs"] != self.inputs(name):
            raise UserError(self._changed(name, "was made of"))
        if mark.get("left") != self.left(name):
            raise UserError(
                f"{self.stage(name)}: its files are not those that the stage left: remove this folder to "
                "make the stage again, or choose another --output"
            )
        return True

    def _changed(self, name: str, verb: str) -> str:
        before = " or ".join(["its config", *self.pipeline.upstream(name)])
        return (
            f"{self.stage(name)}: {verb} other inputs than there are now ({before} changed): remove "
            "this folder to make the stage again, or choose another --output"
        )

    def finish(self, name: str) -> None:
        """Mark a stage as done."""
        mark = {"inputs": self.inputs(name), "left": self.left(name), "seconds": self.took(name)}
        write_file(self.stage(name) / DONE, json.dumps(mark | {"finished": time.time()}, indent=1))

    # ---- times ---------------------------------------------------------------------------------------------

    def times(self) -> dict[str, float]:
        """Seconds that each stage has run, over all attempts that its folder is of."""
        return self._counts(TIMES)

    def took(self, name: str) -> float:
        """Seconds of one stage."""
        return float(self.times().get(name, 0.0))

    def add(self, name: str, amount: float, kind: str = TIMES) -> None:
        """Count seconds, or joules, that a stage took."""
        counts = self._counts(kind)
        text = json.dumps(counts | {name: counts.get(name, 0.0) + amount}, indent=1)
        write_file(self.path / kind, text)

    def forget(self, name: str) -> None:
        """Count what a stage takes from 0, because it is made anew."""
        for kind in (TIMES, ENERGY):
            counts = self._counts(kind)
            if counts.pop(name, None) is not None:
                write_file(self.path / kind, json.dumps(counts, indent=1))

    def _counts(self, kind: str) -> dict[str, float]:
        path, again = self.path / kind, "remove it, and it is counted anew"
        found = _read(path, again) if path.is_file() else {}
        return _amounts(found, str(path), again)

    # ---- the plan ------------------------------------------------------------------------------------------

    def planned(self) -> dict[str, float]:
        """Seconds that the budget gave each stage when the run began."""
        path, without = self.path / PLAN, "remove it, and the card has no plan"
        found = _read(path, without) if path.is_file() else {}
        return _amounts(found.get("seconds", {}), f"{path}: seconds", without)

    def size(self) -> tuple[int, int] | None:
        """The width and the layers that the law chose when the run began; None without a plan of them."""
        path = self.path / PLAN
        found = _read(path, "give the run's folder instead of the file") if path.is_file() else {}
        width, layers = found.get("width"), found.get("layers")
        return (width, layers) if isinstance(width, int) and isinstance(layers, int) and width > 0 else None


def begun(path: Path) -> bool:
    """Whether a folder holds a run of which a stage was started."""
    return (path / PIPELINE).is_file() and any((path / one).exists() for one in STARTED)


def opened(path: Path, pipeline: Pipeline | None, dry: bool = False) -> Folder:
    """The folder of a run: begun, or continued. UserError where it holds another run, or something else.

    ``dry`` finds out what would be refused, and writes and removes nothing.
    """
    check_folder(path)
    known = path / PIPELINE
    if pipeline is not None and known.is_file() and not begun(path):
        if not dry:
            write_file(known, written(pipeline))
        return Folder(path, pipeline)
    if known.is_file():
        kept = Folder(path, read_pipeline(known))
        if pipeline is not None and written(pipeline) != written(kept.pipeline):
            _check_changes(kept, pipeline)
            if not dry:
                _take_changes(kept, pipeline)
        return Folder(path, pipeline or kept.pipeline)
    if pipeline is None:
        raise UserError(f"{path}: holds no run of a pipeline")
    if path.is_dir() and any(not one.name.startswith(".") for one in path.iterdir()):
        raise UserError(f"{path}: the folder holds something else: choose another with --output")
    if not dry:
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        write_file(known, written(pipeline))
    return Folder(path, pipeline)


def _check_changes(kept: Folder, given: Pipeline) -> None:
    """UserError for another pipeline that differs in what is done, or in what a run keeps."""
    old, done = kept.pipeline, kept.done()
    differ = [f"{name} is done" for name in done if name not in given.names or old[name] != given[name]]
    differ += [f"{one} was {getattr(old, one)}" for one in FIXED if getattr(old, one) != getattr(given, one)]
    if differ:
        raise UserError(
            f"{kept.path}: holds a run of another pipeline ({'; '.join(differ)}): continue it with "
            f"`cutaway pipeline {kept.path}`, remove a stage's folder to make it by the changed config, or "
            "choose another folder with --output"
        )


def _take_changes(kept: Folder, given: Pipeline) -> None:
    """Continue with another pipeline: what is not done and differs in it begins anew."""
    old = kept.pipeline
    for name in {*old.names, *given.names} - {*kept.done()}:
        if name not in given.names or name not in old.names or old[name] != given[name]:
            with disk_errors(kept.path):
                kept.config_path(name).unlink(missing_ok=True)
                if kept.stage(name).exists():
                    shutil.rmtree(kept.stage(name))
    write_file(kept.path / PIPELINE, written(given))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from running the same folder. UserError while one does."""
    import filelock

    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"{path}: another process runs this pipeline: wait for it, or choose another folder with "
                "--output"
            ) from None
    try:
        yield
    finally:
        lock.release()


def _own_files(value: Any) -> Iterator[Path]:
    """The user's own files that a config names by whole paths, and those of folders."""
    for path in own_paths(value):
        yield from [path] if path.is_file() else (one for one in path.rglob("*") if one.is_file())


def _read(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON file that the run itself wrote. UserError with a remedy where it was damaged since."""
    try:
        return parsed(path)
    except UserError as error:
        raise UserError(f"{error}: {remedy}") from None


def _amounts(found: Any, where: str, remedy: str) -> dict[str, float]:
    """Numbers from 0 up by name, of a file that may be damaged."""
    if not isinstance(found, dict):
        raise UserError(f"{where}: is {quoted(found)}; it must be numbers by name: {remedy}")
    for name, value in found.items():
        if type(value) not in (int, float) or not is_finite(value) or value < 0:
            raise UserError(f"{where}: {name} is {quoted(value)}; it must be a number from 0 up: {remedy}")
    return found
