"""Split a step's work over processes: here over one; ``distributed.py`` does so over many devices."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.errors import UserError
from cutaway.train import checkpoint
from cutaway.train.checkpoint import Parts
from cutaway.train.config import TrainingConfig
from cutaway.train.trainable import Trainable


class Parallel:
    """One process of ``data_size`` that read different rows; ``device`` None leaves it to the run.

    ``casts``: whether it rounds what is multiplied to the run's precision itself.
    """

    rank, size = 0, 1
    data_rank, data_size = 0, 1
    tensor_size = 1
    device: torch.device | None = None
    casts = False

    def micro_batches(self, run: TrainingConfig) -> list[int]:
        """The begin of each micro-batch of this process in a step's batch."""
        if run.tensor_parallel != self.tensor_size:
            ways = run.tensor_parallel
            raise UserError(
                f"config.tensor_parallel: {ways} devices hold each matrix, but this run has one process: "
                f"start it with `torchrun --nproc-per-node {ways} -m cutaway pretrain ...`, or set it to 1"
            )
        run.share(self.data_size)
        whole = run.gradient_accumulation
        return [n * run.micro_batch_size for n in range(self.data_rank, whole, self.data_size)]

    def shard(self, trainable: Trainable, run: TrainingConfig) -> None:
        """Spreads a model over the devices."""

    def sync_gradients(self, trainable: Trainable, last: bool) -> AbstractContextManager[Any]:
        """Around one micro-batch: gradients are summed after the ``last`` alone."""
        return nullcontext()

    def all_reduce(self, numbers: Tensor) -> Tensor:
        """The sums of these numbers over the processes that read different rows."""
        return numbers

    def largest(self, numbers: Tensor) -> Tensor:
        """The largest of each of these numbers over the same processes."""
        return numbers

    def clip_gradients(self, parameters: Sequence[nn.Parameter], bound: float | None) -> float:
        """The norm of the whole gradient, which is scaled down to ``bound`` if it is larger."""
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        if bound is not None and norm > bound:  # else every gradient would be read and written, times one
            torch.nn.utils.clip_grads_with_norm_(parameters, bound, norm)
        return float(norm)

    def barrier(self) -> None:
        """Until all processes are here."""

    def any_signal(self, asked: int | None) -> int | None:
        """The signal that any process was sent."""
        return asked

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """A tensor with the parts that other devices hold."""
        return tensor

    def write(self, folder: Path, step: int, parts: Parts) -> None:
        """A checkpoint."""
        checkpoint.write_training_state(folder, step, parts)


SINGLE_PROCESS = Parallel()
