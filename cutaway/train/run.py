"""A run from its config to its end: the folder, the data, the weights, the steps; --resume continues each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from cutaway.errors import UserError, plural
from cutaway.model.config_dict import to_dict
from cutaway.store.files import atomic_file, disk_errors
from cutaway.train import checkpoint, config, curve, device, git, log, loop
from cutaway.train import folder as run_folder
from cutaway.train.config import TrainingConfig
from cutaway.train.folder import CHECKPOINTS, GIT, LOCK
from cutaway.train.parallel import SINGLE_PROCESS, Parallel
from cutaway.train.recipes import pretrain
from cutaway.train.signals import SignalHandler
from cutaway.train.training import Dataset, Training
from cutaway.weights.load import RUN

# What may differ when a run continues: none of it enters the weights.
FREE = ("intervals", "device", "threads", "tensorboard", "wandb", "prompts", "compile", "git_diff")
EXTENDED = ("steps", "epochs", "early_stopping")  # when it ends, which may change too
SHOWN = 8  # differences that an error lists


@runtime_checkable
class Recipe(Protocol):
    """What is trained on what: a module of train/recipes/."""

    def resolved(self, run: Any, folder: Path, note: pretrain.Note) -> Any:
        """The run with all that it depends on named and in its folder."""
        ...

    def ready(self, run: Any, folder: Path, note: pretrain.Note) -> Dataset:
        """The rows of a resolved run, and its model."""
        ...


def train(
    run: TrainingConfig,
    folder: Path,
    callback: loop.Callback,
    *,
    recipe: Recipe = pretrain,
    resume: bool = False,
    parallel: Parallel = SINGLE_PROCESS,
) -> None:
    """Train ``run`` into ``folder``, which is then a model that ``cutaway.load`` opens.

    UserError if the folder holds another run, this one without ``resume``, or one that another process
    trains. KeyboardInterrupt or SystemExit after a signal, once a checkpoint is written. ``resume`` with more
    ``steps`` extends a run.
    """
    if run.batch_size:  # else its examples decide it
        parallel.micro_batches(run)
    where = device.device(run.device)
    log.check(run.tensorboard, run.wandb)
    with locked(folder, parallel):
        opened = _open(run, folder, resume, callback, where, recipe) if parallel.rank == 0 else None
        parallel.barrier()
        if not (folder / RUN).is_file():
            raise UserError(
                f"{folder}: process {parallel.rank} does not find here the run that the first one wrote: "
                "name a folder on a disk that all machines share, with --output"
            )
        decided = ("compile",) if run.compile == "auto" else ()  # at the first start, and kept in run.yaml
        settings = {name: getattr(run, name) for name in FREE if name not in decided}
        run = replace(config.read_run_config(str(folder / RUN), kind=type(run)), **settings)
        with SignalHandler(callback.stopping) as signals:
            data = opened[1] if opened is not None and opened[0] == run else None
            del opened  # else two models are in memory
            data = data or recipe.ready(run, folder, callback.note)
            _train(run, data, folder, callback, resume, parallel, signals)


def _train(
    run: TrainingConfig,
    data: Dataset,
    folder: Path,
    callback: loop.Callback,
    resume: bool,
    parallel: Parallel,
    signals: SignalHandler,
) -> None:
    training = Training(run, data, parallel, callback.note)
    if parallel.rank == 0 and run.compile == "auto":
        _write(replace(run, compile="always" if training.compiles else "never"), folder)
    found = checkpoint.newest(folder / CHECKPOINTS, callback.note) if resume else None
    if found is not None:
        training.restore(found)
        if training.step < run.steps:
            callback.note(f"Continuing after step {training.step}.")
        else:
            data.export(training, folder)  # a crash may have come between the last checkpoint and this
            callback.note(_finished(run, folder))
    elif resume:
        callback.note("There is no checkpoint yet, so the run starts at its first step.")
    peak = device.peak(training.device, training.run.precision)
    weights = sum(p.numel() for p in training.model.parameters())
    trained = sum(p.numel() for p in training.names)
    part = "all" if trained == weights else f"{trained:,}"
    callback.note(
        f"{plural(weights, 'weight')}, {part} of them trained; matrix products in "
        f"{training.run.precision} reach {peak / 1e9:,.0f} GFLOP/s on {training.device}."
    )
    if training.device.type == "cpu" and torch.get_num_threads() > 1:
        callback.note(
            f"{torch.get_num_threads()} threads: another number of threads adds in another order and rounds "
            "otherwise; --threads 1 repeats a run bit for bit on any machine of this kind."
        )
    if left := run.steps - training.step:
        callback.note(
            f"{plural(left, 'step takes', 'steps take')} about {duration(training.seconds())} here, without "
            "evaluations and samples."
        )
    lines = None
    if parallel.rank == 0:
        lines = log.Log(folder, training.step, run.tensorboard, run.wandb, to_dict(run))
    try:
        loop.train(training, folder, lines, callback, signals, peak)
    finally:
        if lines is not None:
            lines.close()
    if parallel.rank == 0:
        curve.page(folder)


def _finished(run: TrainingConfig, folder: Path) -> str:
    """The message of a finished run, and how to train it further."""
    epochs = " or --epochs" if hasattr(run, "epochs") and not run.replicated else ""
    return (
        f"{folder}: the run is finished: it has done {plural(run.steps, 'step')}, all that it has. More steps"
        f"{epochs} extend it: `cutaway {run.verb} {folder} --resume --steps {2 * run.steps}`."
    )


def duration(seconds: float) -> str:
    """A time to wait for in one unit: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


@contextmanager
def locked(folder: Path, parallel: Parallel = SINGLE_PROCESS) -> Iterator[None]:
    """Keep other processes from training into the folder at the same time."""
    if parallel.rank:
        yield
        return
    import filelock

    made = not folder.exists()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"{folder}: another process trains this run: wait for it, or choose another folder with "
                "--output"
            ) from None
    try:
        yield
    finally:
        lock.release()  # the file stays: a process that waits for it must find the same one
        if made and [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def _open(
    run: TrainingConfig,
    folder: Path,
    resume: bool,
    callback: loop.Callback,
    where: torch.device,
    recipe: Recipe,
) -> tuple[TrainingConfig, Dataset]:
    """Set up the folder of a new run, or check that the run to continue is this one; the run and its data."""
    known = folder / RUN
    run_folder.check(folder, resume, run.verb)
    with disk_errors(folder):
        if not resume and known.is_file():
            callback.note(f"{folder}: holds a run that has done no step, so this one begins in its place.")
            run_folder.begin_anew(folder)
        run = recipe.resolved(run, folder, callback.note)
        begun = config.read_run_config(str(known), kind=type(run)) if known.is_file() else None
        if run.precision == "auto":
            chosen = device.precision("auto", where) if begun is None else begun.precision
            run = replace(run, precision=chosen)
        if begun is not None:
            if run.compile == "auto":
                run = replace(run, compile=begun.compile)
            _check_same(begun, run, folder)
            if begun.steps != run.steps:
                callback.note(
                    f"The run has {plural(run.steps, 'step')} now; it was started with {begun.steps}."
                )
        with atomic_file(folder / GIT) as out:
            out.write(json.dumps(git.state(Path.cwd(), run.git_diff), indent=1).encode())
        data = recipe.ready(run, folder, callback.note)
        _write(run, folder)
    return run, data


def _write(run: TrainingConfig, folder: Path) -> None:
    with atomic_file(folder / RUN) as out:
        out.write(config.run_config_text(run).encode())


def _check_same(old: TrainingConfig, new: TrainingConfig, folder: Path) -> None:
    """UserError that lists what differs, field by field; steps may grow beyond the newest checkpoint."""
    before, now = _flat(old), _flat(new)
    free = (*FREE, *EXTENDED)
    differ = [
        f"{name} was {before.get(name, 'unset')}, is now {now.get(name, 'unset')}"
        for name in sorted(before.keys() | now.keys())
        if name.partition(".")[0] not in free and before.get(name) != now.get(name)
    ]
    if differ:
        more = f", and {len(differ) - SHOWN} more" if len(differ) > SHOWN else ""
        raise UserError(
            f"{folder}: the run was started with another config: {'; '.join(differ[:SHOWN])}{more}. "
            "Continue it with the old values, or start a new run with --output"
        )
    saved = checkpoint.all_in(folder / CHECKPOINTS)
    if saved and checkpoint.step_of(saved[-1]) > new.steps:
        done = checkpoint.step_of(saved[-1])
        raise UserError(
            f"config.steps: {new.steps} is fewer than the {plural(done, 'step')} that {folder} has done"
        )


def _flat(value: object, name: str = "") -> dict[str, object]:
    """A config's values by their dotted names."""
    if is_dataclass(value):
        inner = [(f.name, getattr(value, f.name)) for f in fields(value)]
        own: dict[str, object] = {
            f"{name}.kind".lstrip("."): f"{type(value).__module__.rpartition('.')[2]}.{type(value).__name__}"
        }
    elif isinstance(value, tuple) and any(map(is_dataclass, value)):
        inner, own = [(str(n), item) for n, item in enumerate(value)], {}
    else:
        return {name: value}
    for part, item in inner:
        own |= _flat(item, f"{name}.{part}".lstrip("."))
    return own
