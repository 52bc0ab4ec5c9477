"""The optimizers as data: AdamW over all weights, or Muon over matrices and AdamW over the rest.

    AdamW (1711.05101)  m = b1 m + (1-b1) g   v = b2 v + (1-b2) g^2   w -= lr (m / (sqrt v + eps) + decay w)
    Muon (2502.16982)   m = b m + g           w -= lr (orthogonal(g + b m) + decay w)

Weight decay applies to matrices alone: norms and biases gain nothing from it. Both are torch's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.bounds import Bounded, Decay, NonNegative, Positive
from cutaway.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class AdamW(Bounded):
    """``learning_rate`` is the peak, which the schedule scales; ``betas`` are the decays of both averages."""

    learning_rate: Positive = 1e-3
    betas: tuple[Decay, ...] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.betas) != 2:
            raise UserError(f"config.optimizer.betas is {list(self.betas)}; it must be two numbers")

    def build(self, named: Iterable[tuple[str, nn.Parameter]]) -> list[Optimizer]:
        """The optimizer of these parameters."""
        import torch

        parameters = [parameter for _, parameter in named]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        betas = self.betas[0], self.betas[1]
        return [torch.optim.AdamW(groups, lr=self.learning_rate, betas=betas, eps=self.eps, fused=True)]

    def state_bytes(self, matrices: float, others: float) -> dict[str, float]:
        """Bytes of state for so many weights in the blocks' matrices, and elsewhere."""
        return {"AdamW's moments": 8 * (matrices + others)}


@dataclass(frozen=True)
class Muon(Bounded):
    """Muon for the matrices inside the blocks; ``adamw`` trains embedding, head and vectors.

    Its step has the scale of AdamW's (0.2 sqrt(max(rows, columns))), so that one learning rate suits both.
    """

    learning_rate: Positive = 1e-3
    momentum: Decay = 0.95
    weight_decay: NonNegative = 0.1
    adamw: AdamW = AdamW()

    def build(self, named: Iterable[tuple[str, nn.Parameter]]) -> list[Optimizer]:
        """The optimizers of these parameters, Muon's first."""
        import torch

        named = list(named)
        matrices = {name for name, p in named if p.ndim == 2 and ".blocks." in f".{name}"}
        muon = torch.optim.Muon(
            [p for name, p in named if name in matrices],
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        return [muon, *self.adamw.build((name, p) for name, p in named if name not in matrices)]

    def state_bytes(self, matrices: float, others: float) -> dict[str, float]:
        """Bytes of state for so many weights in the blocks' matrices, and elsewhere."""
        return {"Muon's momentum": 4 * matrices, **self.adamw.state_bytes(0, others)}
