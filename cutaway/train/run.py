"""A run from its config to its end: the folder, the text, the weights, the steps, each found again by
--resume.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

from cutaway.errors import UserError
from cutaway.model.config import to_dict
from cutaway.store.files import atomic_file, disk_errors, part_of
from cutaway.train import checkpoint, config, dataset, device, log, loop
from cutaway.train.config import Run
from cutaway.train.parallel import ALONE, World
from cutaway.train.signals import Stopper
from cutaway.weights.load import RUN

# What may differ when a run goes on: none of it enters the weights.
FREE = ("every", "device", "threads", "tensorboard", "wandb", "prompts", "compile")
GIT = "git.json"


def pretrain(
    run: Run, folder: Path, watch: loop.Watch, *, resume: bool = False, world: World = ALONE
) -> None:
    """Trains what ``run`` says into ``folder``, which afterwards is a model that ``cutaway.load`` opens.

    UserError if the folder holds another run, or this one without ``resume``. Raises KeyboardInterrupt or
    SystemExit after a signal, when a checkpoint is written.
    """
    if world.rank == 0:
        _open(run, folder, resume, watch)
    world.wait()
    run = replace(config.read(str(folder / RUN)), **{name: getattr(run, name) for name in FREE})
    with Stopper() as stopper:
        ready = dataset.ready(run, folder, watch.note)
        training = loop.Training(run, ready, world, watch.note)
        found = checkpoint.newest(folder / loop.CHECKPOINTS, watch.note) if resume else None
        if found is not None:
            training.restore(found)
            watch.note(f"Going on after step {training.step}.")
        elif resume:
            watch.note("There is no checkpoint yet, so the run begins at its beginning.")
        peak = device.peak(training.device, training.run.precision)
        weights = sum(p.numel() for p in training.model.parameters())
        watch.note(
            f"{weights:,} weights; matrix products in {training.run.precision} reach "
            f"{peak / 1e9:,.0f} GFLOP/s on {training.device}."
        )
        lines = None
        if world.rank == 0:
            lines = log.Log(folder, training.step, run.tensorboard, run.wandb, to_dict(run))
        try:
            loop.train(training, folder, lines, watch, stopper, peak)
        finally:
            if lines is not None:
                lines.close()


def _open(run: Run, folder: Path, resume: bool, watch: loop.Watch) -> None:
    """Makes the folder of a new run, or checks that the one to go on with is this one."""
    known = folder / RUN
    if known.is_file() and not resume:
        raise UserError(
            f"{folder}: already holds a run: go on with --resume, or choose another folder with --out"
        )
    if not known.is_file() and folder.is_dir() and any(folder.iterdir()) and not _unfinished(folder):
        raise UserError(f"{folder}: is a folder that holds something else: choose another with --out")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        run = dataset.resolved(run, folder, watch.note)
        begun = config.read(str(known)) if known.is_file() else None
        run = _settled(run, begun)
        if begun is not None:
            _same(begun, run, folder)
        with atomic_file(folder / GIT) as out:
            out.write(json.dumps(log.git_state(Path.cwd()), indent=1).encode())
        dataset.ready(run, folder, lambda _: None)
        with atomic_file(known) as out:
            out.write(config.write(run).encode())


def _unfinished(folder: Path) -> bool:
    """Whether all there is was made by a run that stopped before it began to train."""
    left = {path.name for path in folder.iterdir()}
    return left <= {loop.TOKENIZER, "data", GIT, part_of(folder / GIT).name, part_of(folder / RUN).name}


def _settled(run: Run, begun: Run | None) -> Run:
    """The run with a precision of its own where it leaves it open: the one that it was begun with, or this
    machine's.
    """
    if run.precision == "auto" and begun is not None:
        return replace(run, precision=begun.precision)
    return replace(run, precision=device.precision(run.precision, device.device(run.device)))


def _same(old: Run, new: Run, folder: Path) -> None:
    for entry in fields(Run):
        one, other = getattr(old, entry.name), getattr(new, entry.name)
        if entry.name not in FREE and one != other:
            raise UserError(
                f"{folder}: was begun with another {entry.name} ({_short(one)}, now {_short(other)}): a "
                "run goes on with what it began with; choose another folder with --out"
            )


def _short(value: object) -> str:
    said = str(value)
    return said if len(said) < 60 else f"{said[:57]}..."
