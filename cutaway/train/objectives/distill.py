"""Distillation: the student's distribution at each trained token is drawn to a teacher's (1503.02531).

    beta 0       KL(T || S)     forward: the student covers all that the teacher may say
    beta 1       KL(S || T)     reverse: it keeps to what the teacher is sure of
    between      beta KL(T || M) + (1 - beta) KL(S || M), M = beta T + (1 - beta) S      (GKD, 2306.13649)

    loss = temperature^2 times the mean over trained tokens, both distributions softmax(logits / temperature)

The inner form goes to 0 at both ends: its gradient near them is small, and wants a larger learning rate.
Only a chunk of logits is held at a time, in the backward pass too. trl leaves out the square of the
temperature, which keeps the gradient's size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cutaway.bounds import Fraction, Positive
from cutaway.train.objectives.common.objective import Objective

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.shapes import Float, Int
    from cutaway.train.trainable import Trainable, TrainingBatch


@dataclass(frozen=True)
class Config(Objective):
    """``teacher``: a model with the student's vocabulary (a name, file or folder), which may stay packed."""

    teacher: str = ""
    teacher_type: Literal["float32", "packed"] = "float32"
    beta: Fraction = 0.0
    temperature: Positive = 1.0

    def loss(self, trainable: Trainable, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of a micro-batch's divergences, and that of cross-entropies of the targets."""
        import torch
        from torch.utils.checkpoint import checkpoint

        hidden = trainable.hidden(batch)[0].flatten(0, 1)
        teacher: Any = trainable.teacher
        with torch.no_grad():
            read = teacher.hidden(batch)[0].flatten(0, 1)
        weights = hidden.new_ones(len(hidden)) if batch.loss_weights is None else batch.loss_weights.flatten()
        loss, entropy = hidden.new_zeros(()), hidden.new_zeros(())
        kept = weights.nonzero()[:, 0]  # a prompt's tokens need no logits
        head, teacher_head = trainable.head_weight, teacher.head_weight
        softcaps = trainable.decoder.config.softcap, teacher.decoder.config.softcap
        targets = batch.targets.flatten()
        for rows in kept.split(self.chunk_size):
            given = hidden[rows], head, read[rows], teacher_head, targets[rows]
            divergences, log_probs = checkpoint(self._chunk, *given, softcaps, use_reentrant=False)
            loss = loss + (weights[rows] * divergences).sum()
            entropy = entropy - (weights[rows] * log_probs.detach()).sum()
        return loss, {"cross_entropy": entropy}

    def _chunk(
        self,
        hidden: Float[Tensor, "n d"],
        head: Float[Tensor, "v d"],
        read: Float[Tensor, "n e"],
        teacher_head: Float[Tensor, "w e"],
        targets: Int[Tensor, "n"],
        softcaps: tuple[float | None, float | None],
    ) -> tuple[Tensor, Tensor]:
        vocab = min(len(head), len(teacher_head))  # a padded table has rows that no token names
        student, teacher = (
            _log_softmax(x @ weight[:vocab].T, softcap, self.temperature)
            for x, weight, softcap in zip((hidden, read), (head, teacher_head), softcaps, strict=True)
        )
        found = self.temperature**2 * divergence(student, teacher, self.beta)
        return found, student.gather(-1, targets[:, None])[:, 0]


def divergence(
    student: Float[Tensor, "n v"], teacher: Float[Tensor, "n v"], beta: float
) -> Float[Tensor, "n"]:
    """The divergence of two distributions, given as log-probabilities."""
    import torch

    def kl(one: Tensor, other: Tensor) -> Tensor:
        return (one.exp() * (one - other)).sum(-1)

    if beta == 0:
        return kl(teacher, student)
    if beta == 1:
        return kl(student, teacher)
    mixed = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))
    return beta * kl(teacher, mixed) + (1 - beta) * kl(student, mixed)


def _log_softmax(logits: Tensor, softcap: float | None, temperature: float) -> Tensor:
    from cutaway.layers.norm import widened

    logits = widened(logits)
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    return (logits / temperature).log_softmax(-1)
