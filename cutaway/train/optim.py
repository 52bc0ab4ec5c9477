"""The optimizers as data, and how they are built: AdamW over all weights, or Muon over matrices and AdamW
over the rest.

    AdamW (1711.05101)   m = b1 m + (1-b1) g    v = b2 v + (1-b2) g^2    w -= rate (m / (sqrt v + eps) +
    decay w) Muon (2502.16982)    m = b m + g            w -= rate (orthogonal(g + b m) + decay w)

Only matrices decay: a norm's or a bias' pull towards zero has no use. Both are torch's own implementations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class AdamW:
    """``rate`` is the largest step, which the schedule scales; ``betas`` how long each average remembers."""

    learning_rate: float = 1e-3
    betas: tuple[float, ...] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1

    def build(self, named: Iterable[tuple[str, nn.Parameter]]) -> list[Optimizer]:
        """The optimizers of these parameters."""
        import torch

        parameters = [parameter for _, parameter in named]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        if len(self.betas) != 2:
            raise UserError(f"optim.betas: expected two numbers, found {list(self.betas)}")
        betas = self.betas[0], self.betas[1]
        groups = [group for group in groups if group["params"]]
        return [torch.optim.AdamW(groups, lr=self.learning_rate, betas=betas, eps=self.eps, fused=True)]


@dataclass(frozen=True)
class Muon:
    """Muon with ``rate`` for the matrices inside the blocks; embedding, head and vectors are AdamW's.

    Its step is scaled to the size of AdamW's (0.2 sqrt(max(rows, columns))), so that one rate serves both.
    """

    learning_rate: float = 1e-3
    momentum: float = 0.95
    weight_decay: float = 0.1
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
