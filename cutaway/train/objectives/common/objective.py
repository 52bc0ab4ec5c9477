"""The interface of an objective. No torch at import: a config is read without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from cutaway.bounds import Bounded, Count
from cutaway.data.conversations import Kind

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.model.decoder import Decoder
    from cutaway.train.trainable import Trainable, TrainingBatch

Source = Literal["examples", "task", "program"]
Sum = Callable[["Tensor"], "Tensor"]  # over the processes that read different rows


@dataclass(frozen=True)
class Objective(Bounded):
    """``chunk_size`` tokens at a time pass the head.

    ``rows``: what is trained on. ``source``: where that comes from: a user's examples, answers sampled to a
    task, or rows that a program writes (``compare``).
    ``reference``: whether it compares with the model before training.
    ``alone``: whether only what it puts beside the model is trained, and the model stays as it is.
    ``reads_end``: whether it reads the model's output at the last token of an answer, which is only a target
    otherwise. ``updates``: how many optimisation steps a step takes on its batch.
    """

    source: ClassVar[Source] = "examples"
    rows: ClassVar[Kind] = "examples"
    reference: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    reads_end: ClassVar[bool] = False
    updates: ClassVar[int] = 1
    chunk_size: Count = 512

    def attach(self, model: Decoder) -> None:
        """Put what is trained beside the model into it."""

    def save(self, model: Decoder, folder: Path | None) -> None:
        """Write what ``attach`` put into it into a run's folder; None: another process writes."""

    def before(self, trainable: Trainable, batches: list[TrainingBatch], total: Sum) -> list[TrainingBatch]:
        """The micro-batches of a step, with what each must know of all of them and of the weights before."""
        return batches

    def loss(self, trainable: Trainable, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of a micro-batch's losses, and the sums that ``report`` reads."""
        raise NotImplementedError

    def report(self, sums: dict[str, float], weight: float) -> dict[str, float]:
        """Figures for the log; ``weight`` is what the sum of losses is divided by."""
        return {name: value / weight for name, value in sums.items()}
