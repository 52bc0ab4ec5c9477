"""Who shares the work: here one process with one device, which shares it with nobody. ``distributed.py``
is the world of many, and answers the same questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.errors import UserError
from cutaway.train import checkpoint
from cutaway.train.config import Run
from cutaway.train.loss import Objective

Parts = Mapping[str, Mapping[str, Tensor]]


class World:
    """One process. ``data_rank`` of ``data_size`` read different rows; ``device`` None leaves it to the
    run.
    """

    rank, size = 0, 1
    data_rank, data_size = 0, 1
    device: torch.device | None = None

    def readings(self, run: Run) -> list[int]:
        """Where in a step's batch each reading of this process begins."""
        whole = run.batch // run.rows
        if whole % self.data_size:
            raise UserError(
                f"config.batch: {run.batch} rows in readings of {run.rows} cannot be shared evenly by "
                f"{self.data_size} devices: change batch or rows"
            )
        return [n * run.rows for n in range(self.data_rank, whole, self.data_size)]

    def shard(self, objective: Objective, run: Run) -> None:
        """Spreads a model over the devices."""

    def synced(self, objective: Objective, last: bool) -> AbstractContextManager[Any]:
        """Around one reading: gradients need to meet after the ``last`` alone."""
        return nullcontext()

    def summed(self, numbers: Tensor) -> Tensor:
        """These numbers added up over who reads different rows."""
        return numbers

    def clip(self, parameters: Sequence[nn.Parameter], bound: float | None) -> float:
        """The length of the whole gradient, which is shortened to ``bound`` if it is longer."""
        grads = [p.grad for p in parameters if p.grad is not None]
        length = torch.nn.utils.get_total_norm(grads)
        if bound is not None and length > bound:  # else every gradient would be read and written, times one
            torch.nn.utils.clip_grads_with_norm_(parameters, bound, length)
        return float(length)

    def wait(self) -> None:
        """Until all processes are here."""

    def agreed(self, asked: int | None) -> int | None:
        """The signal that any process was sent."""
        return asked

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor with the parts that other devices hold."""
        return tensor

    def write(self, folder: Path, step: int, parts: Parts, state: Mapping[str, Any]) -> None:
        """A checkpoint."""
        checkpoint.write(folder, step, parts, state)

    def read(self, found: Path, parts: Parts) -> None:
        """Fills the tensors of ``parts`` from a checkpoint, whichever world wrote it."""
        checkpoint.fill(found, parts)


ALONE = World()
