"""DoRA (2402.09353): LoRA on each row's direction, and a trained magnitude of the row.

    y = m / n * (W x + s B A x) + bias      n = |W + s B A| of each row, without a gradient

m starts at |W|, so that training starts at the base model. The norms need no matrix of W's size:

    |W + s B A|^2 = |W|^2 + 2 s <W A', B> + s^2 diag(B A A' B')
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.model.decoder import Decoder
from cutaway.shapes import Float
from cutaway.train.adapted import Matrix, array, freeze, matrices
from cutaway.train.adapters import lora
from cutaway.train.adapters.frozen import frozen
from cutaway.weights.changes import LowRank


@dataclass(frozen=True)
class Config(lora.Config):
    """The settings of LoRA."""

    def attach(self, model: Decoder) -> None:
        """Freeze the model and put pair and magnitude beside each target."""
        freeze(model)
        for parent, name, _, matrix in list(matrices(model, self.targets)):
            setattr(parent, name, DoRALinear(matrix, self))

    def changes(self, model: Decoder) -> dict[str, LowRank]:
        """The trained pairs and magnitudes by our names of weights."""
        found = {name: m for name, m in model.named_modules() if isinstance(m, DoRALinear)}
        return {
            f"{name}.weight": LowRank(
                array(m.a),
                array(m.b),
                self.scale,
                array(m.magnitude),
            )
            for name, m in found.items()
        }


class DoRALinear(lora.LoRALinear):
    """A frozen matrix [out in] with its trained pair and the magnitude [out] of its rows."""

    squares: Tensor

    def __init__(self, base: Matrix, config: Config) -> None:
        super().__init__(base, config)
        self.register_buffer(
            "squares", base.weight.detach().double().square().sum(1).float(), persistent=False
        )
        self.magnitude = nn.Parameter(self.squares.sqrt())

    def norm(self) -> Float[Tensor, "out"]:
        """|W + s B A| of each row."""
        with torch.no_grad():
            scale, a, b = self.config.scale, self.a, self.b
            cross = ((self.base.weight @ a.T) * b).sum(1)
            own = ((b @ (a @ a.T)) * b).sum(1)
            return (self.squares + 2 * scale * cross + scale**2 * own).sqrt()

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        if not self.enabled:
            return frozen(self.base, x)
        factor = self.magnitude / self.norm()
        dropped = F.dropout(x, self.config.dropout, self.training)
        moved = F.linear(F.linear(dropped, self.a), self.b)
        bias = self.base.bias
        plain = frozen(self.base, x) if bias is None else frozen(self.base, x) - bias
        out = (factor * (plain + self.config.scale * moved)).to(plain.dtype)
        return out if bias is None else out + bias
