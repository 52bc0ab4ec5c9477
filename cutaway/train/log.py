"""The log of a run: metrics.jsonl always, TensorBoard and Weights & Biases if the config says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cutaway.errors import UserError
from cutaway.extras import install
from cutaway.store.files import atomic_file, disk_errors
from cutaway.train.curve import METRICS


class Log:
    """Lines of numbers by name, one a step. A run that continues after ``step`` drops later lines."""

    def __init__(
        self, folder: Path, step: int, tensorboard: bool, wandb: str | None, run: dict[str, Any]
    ) -> None:
        self.path = folder / METRICS
        self.board = _tensorboard(folder, step) if tensorboard else None
        self.wandb = _wandb(wandb, folder, run) if wandb else None
        _cut(self.path, step)
        self.file = self.path.open("a", encoding="utf-8")

    def write(self, numbers: dict[str, float | int | str]) -> None:
        """One line; ``numbers`` has the step under "step"."""
        step = int(numbers["step"])
        with disk_errors(self.path.parent):
            self.file.write(json.dumps(numbers) + "\n")
            self.file.flush()
        values = {
            name: value for name, value in numbers.items() if name != "step" and not isinstance(value, str)
        }
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(values, step=step)

    def close(self) -> None:
        """Writes what is still held."""
        self.file.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def check(tensorboard: bool, wandb: str | None) -> None:
    """Before the data are prepared: UserError where a log's library is not installed."""
    if tensorboard:
        _summary_writer()
    if wandb:
        _weights_and_biases()


def _cut(path: Path, step: int) -> None:
    """Drops the lines after ``step``, and one that a crash broke off."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text("utf-8", "replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, LookupError, TypeError, RecursionError):
            continue
    with atomic_file(path) as out:
        out.write("".join(kept).encode())


def _tensorboard(folder: Path, step: int) -> Any:
    return _summary_writer()(str(folder / "tensorboard"), purge_step=step + 1)


def _wandb(project: str, folder: Path, run: dict[str, Any]) -> Any:
    return _weights_and_biases().init(project=project, dir=folder, config=run, resume="allow", id=folder.name)


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(f"TensorBoard is not installed: {install('train')}") from None
    return SummaryWriter


def _weights_and_biases() -> Any:
    try:
        import wandb  # type: ignore[import-not-found]
    except ImportError:
        raise UserError("Weights & Biases is not installed: pip install wandb") from None
    return wandb
