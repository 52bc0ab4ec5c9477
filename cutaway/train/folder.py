"""A run's folder: the names in it, and whether a run may begin or continue there. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from cutaway.errors import UserError
from cutaway.store.files import check_folder, part_of
from cutaway.train import config
from cutaway.weights.load import RUN

CHECKPOINTS, MODEL, TOKENIZER = "checkpoints", "model", "tokenizer"
BEST = "best"  # the checkpoint of the lowest validation loss
GIT, LOCK = "git.json", ".lock"
EXAMPLES, REPORT, REFERENCES = "examples.npz", "data.json", "reference.npz"  # by fine-tuning, before RUN


def check(folder: Path, resume: bool, verb: str) -> None:
    """UserError for a folder that holds another run, or this one without ``resume``, or something else."""
    check_folder(folder)
    if not folder.exists():
        return
    if (folder / RUN).is_file():
        if not resume:
            raise UserError(
                f"{folder}: already holds a run: continue it with `cutaway {verb} {folder} --resume`, or "
                "choose another folder with --output"
            )
        return
    if not _unfinished(folder):
        raise UserError(f"{folder}: the folder holds something else: choose another with --output")


def _unfinished(folder: Path) -> bool:
    """Whether all that the folder holds was made by a run that stopped before its first step."""
    made = (GIT, RUN, EXAMPLES, REPORT, REFERENCES)
    parts = {part_of(folder / name).name for name in made}
    return {path.name for path in folder.iterdir()} <= {TOKENIZER, "data", LOCK, *made, *parts} - {RUN}


def newest(verb: str, runs: Path = Path("runs")) -> Path:
    """The run of this verb in ``runs`` that was last trained. UserError where there is none."""
    found = [path.parent for path in runs.glob(f"*/{RUN}") if _verb(path) == verb]
    if not found:
        raise UserError(
            f"{runs}: holds no run to continue: name its folder, as in `cutaway {verb} FOLDER --resume`"
        )
    return max(found, key=lambda folder: max(path.stat().st_mtime_ns for path in folder.iterdir()))


def _verb(run: Path) -> str:
    """Which verb trains a run.yaml: pretraining's names sources of text."""
    data = config.entries(str(run), ()).get("data")
    return "pretrain" if isinstance(data, dict) and "sources" in data else "finetune"
