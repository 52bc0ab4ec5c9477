"""A run from its config to its end: the folder, the text, the weights, the steps, each found again by
--resume.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

from cutaway.errors import UserError
from cutaway.model.config import to_dict
from cutaway.store.files import replaced, room
from cutaway.train import checkpoint, config, dataset, device, log, loop
from cutaway.train.config import TrainingConfig
from cutaway.train.parallel import SINGLE_PROCESS, Parallel
from cutaway.train.signals import SignalHandler
from cutaway.weights.load import RUN

# What may differ when a run goes on: none of it enters the weights.
FREE = ("intervals", "device", "threads", "tensorboard", "wandb", "prompts", "compile")
GIT = "git.json"


def pretrain(
    run: TrainingConfig,
    folder: Path,
    callback: loop.Callback,
    *,
    resume: bool = False,
    parallel: Parallel = SINGLE_PROCESS,
) -> None:
    """Trains what ``run`` says into ``folder``, which afterwards is a model that ``cutaway.load`` opens.

    UserError if the folder holds another run, or this one without ``resume``. Raises KeyboardInterrupt or
    SystemExit after a signal, when a checkpoint is written.
    """
    if parallel.rank == 0:
        _open(run, folder, resume, callback)
    parallel.barrier()
    run = replace(config.read(str(folder / RUN)), **{name: getattr(run, name) for name in FREE})
    with SignalHandler() as signals:
        ready = dataset.ready(run, folder, callback.note)
        training = loop.Training(run, ready, parallel, callback.note)
        found = checkpoint.newest(folder / loop.CHECKPOINTS, callback.note) if resume else None
        if found is not None:
            training.restore(found)
            callback.note(f"Going on after step {training.step}.")
        elif resume:
            callback.note("There is no checkpoint yet, so the run begins at its beginning.")
        peak = device.peak(training.device, training.run.precision)
        weights = sum(p.numel() for p in training.model.parameters())
        callback.note(
            f"{weights:,} weights; matrix products in {training.run.precision} reach "
            f"{peak / 1e9:,.0f} GFLOP/s on {training.device}."
        )
        lines = None
        if parallel.rank == 0:
            lines = log.Log(folder, training.step, run.tensorboard, run.wandb, to_dict(run))
        try:
            loop.train(training, folder, lines, callback, signals, peak)
        finally:
            if lines is not None:
                lines.close()


def _open(run: TrainingConfig, folder: Path, resume: bool, callback: loop.Callback) -> None:
    """Makes the folder of a new run, or checks that the one to go on with is this one."""
    known = folder / RUN
    if known.is_file() and not resume:
        raise UserError(
            f"{folder}: already holds a run: go on with --resume, or choose another folder with --output"
        )
    if not known.is_file() and folder.is_dir() and any(folder.iterdir()) and not _unfinished(folder):
        raise UserError(f"{folder}: is a folder that holds something else: choose another with --output")
    with room(folder):
        folder.mkdir(parents=True, exist_ok=True)
        run = dataset.resolved(run, folder, callback.note)
        begun = config.read(str(known)) if known.is_file() else None
        run = _settled(run, begun)
        if begun is not None:
            _same(begun, run, folder)
        with replaced(folder / GIT) as out:
            out.write(json.dumps(log.git_state(Path.cwd()), indent=1).encode())
        dataset.ready(run, folder, lambda _: None)
        with replaced(known) as out:
            out.write(config.write(run).encode())


def _unfinished(folder: Path) -> bool:
    """Whether all there is was made by a run that stopped before it began to train."""
    return {path.name for path in folder.iterdir()} <= {loop.TOKENIZER, "data", GIT, f"{RUN}.new"}


def _settled(run: TrainingConfig, begun: TrainingConfig | None) -> TrainingConfig:
    """The run with a precision of its own where it leaves it open: the one that it was begun with, or this
    machine's.
    """
    if run.precision == "auto" and begun is not None:
        return replace(run, precision=begun.precision)
    return replace(run, precision=device.precision(run.precision, device.device(run.device)))


def _same(old: TrainingConfig, new: TrainingConfig, folder: Path) -> None:
    for entry in fields(TrainingConfig):
        one, other = getattr(old, entry.name), getattr(new, entry.name)
        if entry.name not in FREE and one != other:
            raise UserError(
                f"{folder}: was begun with another {entry.name} ({_short(one)}, now {_short(other)}): a "
                "run goes on with what it began with; choose another folder with --output"
            )


def _short(value: object) -> str:
    said = str(value)
    return said if len(said) < 60 else f"{said[:57]}..."
