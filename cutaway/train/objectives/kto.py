"""KTO (2402.01306): answers that were liked or not, each by itself, weighed as people weigh gains and losses.

    z = max(0, mean over a step's prompts x of log pi(y' | x) / reference(y' | x))
    loss = mean over answers of  lambda_liked (1 - sigmoid(beta (d(y) - z)))            where it was liked
                                 lambda_disliked (1 - sigmoid(beta (z - d(y))))         where it was not

d as in ``dpo.py``; y' answers another prompt (``data/example_packing.py``). z estimates the KL divergence of
model and reference, and has no gradient. It is taken over the whole step, not over a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from cutaway.bounds import NonNegative, Positive
from cutaway.data.conversations import Kind
from cutaway.train.objectives.common.answers import sums
from cutaway.train.objectives.common.objective import Objective, Sum

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.train.trainable import Trainable, TrainingBatch


@dataclass(frozen=True)
class Config(Objective):
    """``beta``: how strongly the reference holds. The weights balance unequal numbers of labels."""

    rows: ClassVar[Kind] = "labelled"
    reference: ClassVar[bool] = True
    beta: Positive = 0.1
    liked_weight: NonNegative = 1.0
    disliked_weight: NonNegative = 1.0

    def before(self, trainable: Trainable, batches: list[TrainingBatch], total: Sum) -> list[TrainingBatch]:
        """Each micro-batch with the step's z."""
        import torch

        found = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for batch in batches:
                others = batch.mismatched
                real = sums(others) > 0
                ratios = trainable.outside_loss(partial(self._ratios, trainable, others))
                found[0] += sums(others, ratios)[real].double().sum().cpu()
                found[1] += real.sum().cpu()
        kl, count = total(found).tolist()
        z = max(0.0, kl / count) if count else 0.0
        return [replace(batch, extra=batch.extra | {"z": torch.tensor(z)}) for batch in batches]

    def loss(self, trainable: Trainable, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the answers' losses, and the sums that ``report`` reads."""
        import torch

        real, z = sums(batch) > 0, batch.extra["z"].to(batch.ids.device)
        ratios = sums(batch, self._ratios(trainable, batch))[real]
        labels = batch.extra["labels"]
        liked = torch.nn.functional.pad(labels, (0, 1))[:, : real.shape[1]][real] > 0
        signs, weights = (
            torch.where(liked, 1.0, -1.0),
            torch.where(liked, self.liked_weight, self.disliked_weight),
        )
        losses = weights * (1 - torch.sigmoid(self.beta * signs * (ratios - z)))
        rewards = self.beta * ratios
        return losses.sum(), {
            "kl": z * len(losses),
            "liked": liked.sum(),
            "liked_reward": rewards[liked].sum(),
            "disliked_reward": rewards[~liked].sum(),
        }

    def report(self, sums: dict[str, float], weight: float) -> dict[str, float]:
        """The step's z, and the mean reward of liked and of disliked answers."""
        liked, disliked = max(sums["liked"], 1), max(weight - sums["liked"], 1)
        rewards = sums["liked_reward"] / liked, sums["disliked_reward"] / disliked
        return {"kl": sums["kl"] / weight, "liked_reward": rewards[0], "disliked_reward": rewards[1]}

    def _ratios(self, trainable: Trainable, batch: TrainingBatch) -> Tensor:
        own = trainable.log_probs(batch, self.chunk_size)
        return own - trainable.reference_log_probs(batch, self.chunk_size)
