"""What the objectives of ``grpo``, ``rloo``, ``reinforce`` share: the policy gradient of sampled completions.

    loss = sum over tokens t of completions i of  w_it c_it (-min(r_it A_i, clip(r_it) A_i) + beta k_it)
    r = pi / pi_old     c = min(pi_old / sampler, importance_cap)     clip to [1 - clip_low, 1 + clip_high]

pi is the model's probability of a sampled token at the sampling temperature, computed anew by the trainer;
pi_old is pi of before the first of a step's ``updates`` on these completions, and ``sampler`` what the
sampler drew from: it rounds otherwise, and c corrects for that (truncated importance sampling). A file of
``objectives`` gives the advantages A, the weights w and what the sum is divided by.

KL(pi || reference) is estimated from the sampled tokens, k1 = log pi - log reference:

    k1   in the advantage: A_i - beta (K_i - mean of the other completions' K), K_i = sum over t of k1_it.
         In the reward of an objective that divides by the group's deviation it would be divided too: at equal
         rewards by its own deviation, whatever beta is. As a loss, its gradient is 0 in expectation.
    k2   k1^2 / 2 as a loss: the gradient of KL at each token
    k3   r (exp(-k1) + k1 - 1) as a loss, with r's gradient: without r it is that of another divergence
         (DeepSeek-V3.2, 2512.02556; 2512.21852)

Each has the exact gradient in expectation where the table places it, and is offered there alone. Weights w
that depend on the length (``grpo``) weigh the KL of short completions most, as they do rewards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from cutaway.bounds import Count, Decay, NonNegative, Positive
from cutaway.errors import UserError
from cutaway.train.objectives.common.objective import Objective, Source, Sum

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.train.trainable import Trainable, TrainingBatch

ADVANTAGES, SAMPLER, OLD = "advantages", "sampler_log_probs", "old_log_probs"  # in a batch's ``extra``
ROUNDING = 2.0**-21  # of the numbers' size: four times what float32 tells apart, in which models score


def even(values: np.ndarray) -> np.ndarray:
    """Whether the values of each group [... g] are equal but for rounding [... 1]."""
    return np.ptp(values, -1, keepdims=True) <= ROUNDING * np.abs(values).max(-1, keepdims=True)


def centred(values: np.ndarray) -> np.ndarray:
    """Each value less its group's mean [... g]: exactly 0 in a group of equal ones, whose mean is rounded."""
    return np.where(even(values), 0.0, values - values.mean(-1, keepdims=True))


def leave_one_out(values: np.ndarray) -> np.ndarray:
    """Each value of a group [... g] less the mean of the others."""
    count = values.shape[-1]
    return centred(values) * (count / (count - 1))


@dataclass(frozen=True)
class PolicyGradient(Objective):
    """``temperature``: of sampling. ``clip_low`` and ``clip_high`` bound the ratio's move away from 1.

    ``kl_coefficient`` is beta; ``importance_cap`` bounds the correction for the sampler (None: there is
    none). A step takes ``updates`` optimisation steps on its completions; with one, the ratio is 1 and
    nothing is clipped. ``sampled``: whether the model writes the completions; ``compares``: whether a
    question's completions of equal rewards teach nothing.
    """

    source: ClassVar[Source] = "task"
    sampled: ClassVar[bool] = True
    compares: ClassVar[bool] = True
    temperature: Positive = 1.0
    clip_low: Decay = 0.2
    clip_high: NonNegative = 0.2
    kl_coefficient: NonNegative = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    importance_cap: Positive | None = 2.0
    updates: Count = 1  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.updates > 1 and not self.compares:
            raise UserError(
                "config.objective.updates: what imitates has no ratio to an old policy: give it more steps"
            )
        if self.kl_coefficient and not self.sampled:
            raise UserError(
                "config.objective.kl_coefficient: KL is estimated from what the model samples, and here it "
                "reads the task's own answers: leave it 0"
            )
        if self.kl_coefficient and self.kl_estimator == "k1" and not self.compares:
            raise UserError(
                "config.objective.kl_estimator: k1 is compared between completions as rewards are, and this "
                "objective compares none: use k2 or k3"
            )

    def before(self, trainable: Trainable, batches: list[TrainingBatch], total: Sum) -> list[TrainingBatch]:
        """Each micro-batch with the log-probabilities of the policy before the step's first update."""
        import torch

        if self.updates == 1:
            return batches
        with torch.no_grad():
            old = [trainable.log_probs(batch, self.chunk_size, self.temperature) for batch in batches]
        return [
            replace(batch, extra=batch.extra | {OLD: each}) for batch, each in zip(batches, old, strict=True)
        ]

    def advantages(self, rewards: np.ndarray) -> np.ndarray:
        """float64 [n g], of the rewards of n prompts' g completions each."""
        raise NotImplementedError

    def kl_advantages(self, k1: np.ndarray) -> np.ndarray:
        """What the KL to the reference adds to the advantages [n g], of completions' sums of k1."""
        return -self.kl_coefficient * leave_one_out(k1)

    def weights(self, lengths: np.ndarray, limit: int) -> tuple[np.ndarray, float]:
        """The weight of a token of each completion [n g], and the divisor, of a micro-batch.

        ``lengths`` [n g] are in tokens, at most ``limit``. A step's loss is divided by the sum of its
        micro-batches' divisors.
        """
        raise NotImplementedError

    def loss(self, trainable: Trainable, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the losses of a micro-batch's sampled tokens, and the sums of ``report``."""
        import torch

        from cutaway.train.loss import log_probs

        hidden, _ = trainable.hidden(batch)
        weights = torch.ones_like(hidden[..., 0]) if batch.loss_weights is None else batch.loss_weights
        at = weights.flatten().nonzero()[:, 0]  # the prompts' tokens need no logits

        def sampled(values: Tensor) -> Tensor:
            return values.flatten(0, 1)[at]

        softcap = trainable.decoder.config.softcap
        head, targets = trainable.head_weight, sampled(batch.targets)
        log_p = log_probs(sampled(hidden), head, targets, self.chunk_size, softcap, self.temperature)
        advantages, sampler = sampled(batch.extra[ADVANTAGES]), sampled(batch.extra[SAMPLER])
        old = sampled(batch.extra[OLD]) if OLD in batch.extra else log_p.detach()
        ratio = (log_p - old).exp()
        bounded = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss = -torch.minimum(ratio * advantages, bounded * advantages)
        gap = old - sampler
        sums = {
            "clipped": (bounded * advantages < ratio * advantages).sum(),
            "entropy": -log_p.sum(),  # an unbiased estimate from the sampled tokens
            "gap": gap.abs().sum(),
            "ratio_max": gap.exp().max() if len(gap) else gap.new_zeros(()),
            "tokens": torch.tensor(len(at)),
        }
        if self.kl_coefficient:
            apart = log_p - sampled(trainable.reference_log_probs(batch, self.chunk_size, self.temperature))
            k3 = (-apart).exp() + apart - 1
            sums["kl"] = k3.sum()
            if self.kl_estimator != "k1":
                loss = loss + self.kl_coefficient * (
                    apart.square() / 2 if self.kl_estimator == "k2" else ratio * k3
                )
        if self.importance_cap is not None:
            loss = loss * gap.exp().clamp(max=self.importance_cap)
        return (sampled(weights) * loss).sum(), {name: value.detach() for name, value in sums.items()}

    def report(self, sums: dict[str, float], weight: float) -> dict[str, float]:
        """Means over the sampled tokens, and the largest ratio of the trainer's probability to the sampler's.

        ``sampler_gap`` is the mean of the absolute difference of their logarithms.
        """
        tokens = max(sums["tokens"], 1)
        found = {
            "entropy": sums["entropy"] / tokens,
            "clip_fraction": sums["clipped"] / tokens,
            "sampler_gap": sums["gap"] / tokens,
            "sampler_ratio_max": sums["ratio_max"],
        }
        return found | ({"kl": sums["kl"] / tokens} if "kl" in sums else {})
