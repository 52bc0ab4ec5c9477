"""Sums over each answer's trained tokens in packed rows, for objectives that compare answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cutaway.data.conversations import Kind
from cutaway.train.objectives.common.objective import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.shapes import Float, Int
    from cutaway.train.trainable import Trainable, TrainingBatch


def documents(batch: TrainingBatch) -> tuple[Int[Tensor, "b t"], int]:
    """The number of each token's document in its row, and an even number above all of them."""
    numbers = batch.ids.new_zeros(batch.ids.shape) if batch.documents is None else batch.documents
    count = int(numbers.max()) + 1
    return numbers, count + count % 2


def sums(batch: TrainingBatch, values: Float[Tensor, "b t"] | None = None) -> Float[Tensor, "b n"]:
    """The sum over each document's trained tokens; without values, their number."""
    import torch

    numbers, count = documents(batch)
    weights = batch.loss_weights
    if weights is None:
        weights = torch.ones_like(batch.ids, dtype=torch.float32)
    found = weights if values is None else values * weights
    return found.new_zeros(len(numbers), count).scatter_add(1, numbers, found)


@dataclass(frozen=True)
class Answers:
    """Each answer's summed log-probability, number of trained tokens, and log pi / reference."""

    log_probs: Float[Tensor, "p"]
    tokens: Float[Tensor, "p"]
    ratios: Float[Tensor, "p"]


@dataclass(frozen=True)
class Pairwise(Objective):
    """An objective of pairs: the mean over pairs of a loss of both answers."""

    rows: ClassVar[Kind] = "pairs"

    def losses(self, chosen: Answers, rejected: Answers) -> Float[Tensor, "p"]:
        """Each pair's loss."""
        raise NotImplementedError

    def rewards(self, answers: Answers) -> Float[Tensor, "p"]:
        """The reward that the objective implies."""
        raise NotImplementedError

    def loss(self, trainable: Trainable, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the pairs' losses, and the sums that ``report`` reads."""
        log_probs = sums(batch, trainable.log_probs(batch, self.chunk_size))
        tokens = sums(batch)
        reference = 0
        if self.reference:
            reference = sums(batch, trainable.reference_log_probs(batch, self.chunk_size))
        ratios, real = log_probs - reference, tokens[:, ::2] > 0
        chosen, rejected = (
            Answers(*(each[:, side::2][real] for each in (log_probs, tokens, ratios))) for side in (0, 1)
        )
        return self.losses(chosen, rejected).sum(), {
            **compared(self.rewards(chosen), self.rewards(rejected)),
            "chosen_log_prob": (chosen.log_probs / chosen.tokens).sum(),
            "rejected_log_prob": (rejected.log_probs / rejected.tokens).sum(),
        }


def compared(chosen: Float[Tensor, "p"], rejected: Float[Tensor, "p"]) -> dict[str, Tensor]:
    """Sums over pairs for the log, of both rewards: how often, and by how much, the chosen one is greater."""
    return {
        "chosen_reward": chosen.sum(),
        "rejected_reward": rejected.sum(),
        "margin": (chosen - rejected).sum(),
        "accuracy": (chosen > rejected).sum(),
    }
