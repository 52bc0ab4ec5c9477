"""A pipeline to its end: each stage in a process of its own, its config fixed before, its mark written after.

A training stage that was killed continues from its checkpoint by its verb's own --resume; another stage
begins again in an empty folder. So a run that is killed anywhere comes to the bits of one that is not.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cutaway.errors import OperationalError, UserError
from cutaway.pipeline import verbs
from cutaway.pipeline.child import TORCHRUN
from cutaway.pipeline.config import Pipeline
from cutaway.pipeline.energy import Meter
from cutaway.pipeline.folder import ENERGY, Folder
from cutaway.pipeline.verbs import RESULTS, VERBS
from cutaway.store.files import Progress, disk_errors, silent, write_file
from cutaway.store.reading import json_lines
from cutaway.train.curve import METRICS
from cutaway.train.folder import CHECKPOINTS, EXAMPLES, REPORT

POLL, COUNTED = 0.25, 5.0  # seconds between looks at a stage, and between counts of its time
TOKENISED = (EXAMPLES, REPORT)
PREFIX = "cutaway: "  # of the sentence in which a verb says what went wrong
COMMAND = "$ cutaway"  # begins an attempt in a stage's log
Note = Callable[[str], None]


@runtime_checkable
class Planner(Protocol):
    """What fixes a stage's config before it starts: the number of its steps, by the time that is left."""

    def fixed(self, folder: Folder, name: str) -> dict[str, Any]: ...


class AsGiven:
    """Every stage as the pipeline has it."""

    def fixed(self, folder: Folder, name: str) -> dict[str, Any]:
        """The pipeline's own config."""
        return dict(folder.pipeline[name].config)


@dataclass
class Runner:
    """Runs the stages of a folder that are not done. ``start`` makes a stage's process, for tests."""

    folder: Folder
    planner: Planner = field(default_factory=AsGiven)
    note: Note = print
    progress: Progress = silent

    def run(self, names: Sequence[str] | None = None) -> list[str]:
        """Run these stages, or all; those that were run. Raises where one fails, with how to go on."""
        pipeline, ran = self.folder.pipeline, []
        chosen = pipeline.names if names is None else check_names(pipeline, names)
        check_needs(pipeline, chosen, self.folder.done())
        for name in chosen:
            if self.folder.is_done(name):
                self.note(f"{name}: done before, in {spell(self.folder.took(name))}.")
                continue
            for other in pipeline.upstream(name):
                self.folder.is_done(other)  # or it says what was changed
            self._stage(name)
            ran.append(name)
        return ran

    def _stage(self, name: str) -> None:
        if not self.folder.stage(name).exists():
            self.folder.forget(name)
        if not self.folder.config_path(name).is_file():
            self.folder.keep_config(name, self.planner.fixed(self.folder, name))
        code = self.attempt(name)
        if code:
            raise self.failure(name, code)
        self.folder.finish(name)
        self.note(f"{name}: done in {spell(self.folder.took(name))}.")

    def attempt(self, name: str) -> int:
        """Run a stage's process to its end; its exit code. Its time is counted, killed or not."""
        folder, own = self.folder, VERBS[self.folder.pipeline[name].verb]
        place = folder.stage(name)
        resume = own.entries and any((place / CHECKPOINTS).glob("*"))
        folder.begin(name, resume)
        with disk_errors(folder.path):
            if place.exists() and not resume:
                clear(place)
            folder.log(name).parent.mkdir(exist_ok=True)
            if not own.entries and folder.pipeline[name].verb != "data":
                place.mkdir(exist_ok=True)
            if folder.pipeline[name].verb == "data" and place.exists():
                place.rmdir()
        verb, config = folder.pipeline[name].verb, folder.config(name)
        yaml = str(folder.config_path(name).relative_to(folder.path))
        words = verbs.command(name, verb, config, yaml, resume)
        code, printed = self.process(name, words, place / METRICS if own.entries else None, steps_of(config))
        if not code and own.printed:
            write_file(place / RESULTS, printed)
        return code

    def process(
        self, name: str, words: list[str], metrics: Path | None = None, steps: int = 0
    ) -> tuple[int, bytes]:
        """Run a command in the run's folder; its exit code, and what it printed."""
        folder = self.folder
        out = folder.log(name).with_suffix(".out")
        begun = counted = time.monotonic()
        meter = Meter()

        def count() -> None:
            nonlocal counted
            folder.add(name, time.monotonic() - counted)
            counted = time.monotonic()
            if (joules := meter.read()) is not None:
                folder.add(name, joules, ENERGY)

        with disk_errors(folder.path), folder.log(name).open("ab") as log, out.open("wb") as printed:
            log.write(f"\n{COMMAND} {shlex.join(words)}\n".encode())
            log.flush()
            with kept_signals() as came:  # from before there is a process that one could miss
                process = subprocess.Popen(
                    start(folder.pipeline, words),
                    cwd=folder.path,
                    env=environment(folder.pipeline),
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for this process, which sends one SIGTERM
                )
                try:
                    while not came and process.poll() is None:
                        time.sleep(min(POLL, (time.monotonic() - begun) / 4 + 0.01))
                        self._show(name, metrics, steps)
                        if time.monotonic() - counted > COUNTED:
                            count()
                finally:
                    if (
                        process.poll() is None
                    ):  # Ctrl-C, SIGTERM, a full disk: a stage that trains saves first
                        end(process)
                    count()
            for number in came[:1]:
                signal.raise_signal(number)
        text = out.read_bytes()
        out.unlink()
        return process.returncode, text

    def _show(self, name: str, metrics: Path | None, steps: int) -> None:
        lines = json_lines(metrics) if metrics is not None and metrics.is_file() and steps else ()
        done = [line["step"] for line in lines if "loss" in line]
        self.progress(f"{name}: step" if done else name, done[-1] if done else 0, steps if done else None)

    def failure(self, name: str, code: int) -> Exception:
        """What, where, and how to go on."""
        log = self.folder.log(name)
        go_on = f"then go on with `cutaway pipeline {self.folder.path}`"
        if code == 128 + signal.SIGINT or code == -signal.SIGINT:
            raise KeyboardInterrupt
        if code < 0:
            killed = signal.Signals(-code).name
            memory = ", as the system does when memory runs out" if killed == "SIGKILL" else ""
            return OperationalError(
                f"stage {name} was ended by {killed}{memory}; what it saved is kept: free memory, {go_on}"
            )
        attempts = log.read_text("utf-8", errors="replace").split(f"\n{COMMAND}")
        lines = attempts[-1].splitlines()
        sentences = [line.removeprefix(PREFIX) for line in lines if line.startswith(PREFIX)]
        why = sentences[-1].rstrip(".") if sentences else f"it ended with the code {code}"
        kind = UserError if code == 2 else OperationalError
        config = self.folder.config_path(name)
        return kind(
            f"stage {name} failed: {why}. All that it printed is in {log}, its config is {config}; mend the "
            f"cause, {go_on}"
        )


def clear(place: Path) -> None:
    """Empty a stage's folder but for examples that are tokenised, which a run takes if they are its own."""
    for path in place.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in TOKENISED:
            path.unlink()


def check_names(pipeline: Pipeline, names: Sequence[str]) -> list[str]:
    """These stages in the pipeline's order. UserError for one that there is not."""
    for name in names:
        if name not in pipeline.names:
            raise UserError(f"--stages: there is no stage {name}: there are {', '.join(pipeline.names)}")
    return [name for name in pipeline.names if name in names]


def check_needs(pipeline: Pipeline, names: Sequence[str], done: Sequence[str]) -> None:
    """UserError where these stages need others that are not done; before the first of them starts."""
    chosen = check_names(pipeline, names)
    for name in chosen:
        missing = [one for one in pipeline.upstream(name) if one not in chosen and one not in done]
        if missing and name not in done:
            raise UserError(f"stage {name} needs {', '.join(missing)}, not done yet: add it to --stages")


def start(pipeline: Pipeline, words: list[str]) -> list[str]:
    """The command of a stage's process, which ends with this one; of several, that which starts them."""
    if pipeline.processes > 1 and words[0] in ("pretrain", "finetune"):
        words = [TORCHRUN, "--nproc-per-node", str(pipeline.processes), "-m", "cutaway", *words]
    return [sys.executable, "-m", "cutaway.pipeline.child", str(os.getpid()), *words]


def environment(pipeline: Pipeline) -> dict[str, str]:
    """This process's, with the pipeline's threads."""
    threads = pipeline.threads
    given = {"OMP_NUM_THREADS": str(threads), "CUTAWAY_THREADS": str(threads)} if threads else {}
    return {**os.environ, **given, "COLUMNS": "110"}


@contextmanager
def kept_signals() -> Iterator[list[int]]:
    """The numbers of SIGINT and SIGTERM that come meanwhile, which do what they usually do afterwards.

    A handler may raise anywhere, and inside of `Popen.poll` that leaves a lock held for good.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a stage's process: it is asked first, and has a minute to save."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def steps_of(config: dict[str, Any]) -> int:
    """The steps of a training stage's config; 0 where epochs decide them."""
    steps = config.get("steps", 0)
    return steps if type(steps) is int else 0


def spell(seconds: float) -> str:
    """A time to read: 40 s, 12 min, 1 h 30 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
