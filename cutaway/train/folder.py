"""A run's folder: the names in it, and whether a run may begin or continue there. Imports no torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from cutaway.errors import UserError
from cutaway.store.files import check_folder, part_of
from cutaway.store.reading import json_lines
from cutaway.train import config
from cutaway.train.curve import METRICS
from cutaway.weights.load import RUN

CHECKPOINTS, MODEL, TOKENIZER = "checkpoints", "model", "tokenizer"
BEST = "best"  # the checkpoint of the lowest validation loss
GIT, LOCK = "git.json", ".lock"
EXAMPLES, REPORT, REFERENCES = "examples.npz", "data.json", "reference.npz"  # by fine-tuning, before RUN
SAMPLES = "samples.jsonl"  # of a task's held-out questions, from before the first step on
BEGUN = (RUN, METRICS, SAMPLES)  # what a run may hold that has done no step
SHOWN = 8  # runs that an error names
BEFORE = (GIT, EXAMPLES, REPORT, REFERENCES)  # files that are written before RUN


def check(folder: Path, resume: bool, verb: str) -> None:
    """UserError for a folder that holds another run, or this one without ``resume``, or something else.

    A run that was stopped before its first step ended has nothing to lose, and may begin anew.
    """
    check_folder(folder)
    if not folder.exists():
        return
    if (folder / RUN).is_file():
        if not resume and not unbegun(folder):
            raise UserError(
                f"{folder}: already holds a run: continue it with `cutaway {verb} {folder} --resume`, or "
                "choose another folder with --output"
            )
        return
    if not _unfinished(folder):
        raise UserError(f"{folder}: the folder holds something else: choose another with --output")


def _unfinished(folder: Path) -> bool:
    """Whether all that the folder holds was made by a run that stopped before its first step."""
    return _holds_only(folder, ())


def _holds_only(folder: Path, more: tuple[str, ...]) -> bool:
    parts = {part_of(folder / name).name for name in (*BEFORE, RUN)}
    return {path.name for path in folder.iterdir()} <= {TOKENIZER, "data", LOCK, *BEFORE, *parts, *more}


def unbegun(folder: Path) -> bool:
    """Whether the run in a folder has done no step: nothing but its figures from before the first."""
    path = folder / METRICS
    return _holds_only(folder, BEGUN) and (
        not path.is_file() or all(line.get("step") == 0 for line in json_lines(path))
    )


def begin_anew(folder: Path) -> None:
    """Remove what a run that has done no step left and the next one's settings would change."""
    for name in BEGUN:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / TOKENIZER, ignore_errors=True)


def newest(
    verb: str, runs: Path = Path("runs"), kind: str = "", fits: Callable[[Path], bool] = lambda _: True
) -> Path:
    """The run of this verb in ``runs`` that was last trained, of those that fit; ``kind``: what those are.

    UserError where there is none, which names the others.
    """
    every = [path.parent for path in runs.glob(f"*/{RUN}") if _verb(path) == verb]
    found = [folder for folder in every if fits(folder)]
    if not found:
        there = f" (there are: {', '.join(map(str, sorted(every)[:SHOWN]))})" if every else ""
        raise UserError(
            f"{runs}: holds no run{kind} to continue{there}: name its folder, as in `cutaway {verb} FOLDER "
            "--resume`"
        )
    return max(found, key=lambda folder: max(path.stat().st_mtime_ns for path in folder.iterdir()))


def _verb(run: Path) -> str:
    """Which verb trains a run.yaml: pretraining's names sources of text."""
    data = config.entries(str(run), ()).get("data")
    return "pretrain" if isinstance(data, dict) and "sources" in data else "finetune"
