"""IA3 (2205.05638): a trained factor for each output of a matrix, or for each input of the MLP's last one.

    y = l * (W x + bias)      of keys, values      y = W (l * x) + bias      of ``down``

The factors start at one, so that training starts at the base model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cutaway.bounds import Shown
from cutaway.model.decoder import Decoder
from cutaway.shapes import Float
from cutaway.train.adapted import Adapter, Matrix, array, freeze, matrices
from cutaway.train.adapters.frozen import frozen
from cutaway.train.adapters.lora import shape_of
from cutaway.weights.changes import Scaled

Side = Literal["in", "out"]
READING = "down"  # the matrix whose inputs are scaled


@dataclass(frozen=True)
class Config(Shown):
    """``targets`` are names of matrices in a block."""

    targets: tuple[str, ...] = ("key", "value", READING)

    def attach(self, model: Decoder) -> None:
        """Freeze the model and put factors beside each target. Raises UserError for a missing one."""
        freeze(model)
        for parent, name, _, matrix in list(matrices(model, self.targets)):
            side: Side = "in" if name == READING else "out"
            setattr(parent, name, ScaledLinear(matrix, side))

    def changes(self, model: Decoder) -> dict[str, Scaled]:
        """The trained factors by our names of weights."""
        return {
            f"{name}.weight": Scaled(array(module.factors), module.side)
            for name, module in model.named_modules()
            if isinstance(module, ScaledLinear)
        }


class ScaledLinear(Adapter):
    """A frozen matrix [out in] whose outputs or inputs are scaled."""

    def __init__(self, base: Matrix, side: Side) -> None:
        super().__init__()
        self.base = base
        self.side: Side = side
        self.factors = nn.Parameter(torch.ones(shape_of(base)[side == "in"]))

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        if not self.enabled:
            return frozen(self.base, x)
        if self.side == "in":
            return frozen(self.base, self.factors * x)
        out = frozen(self.base, x)
        return self.factors.to(out.dtype) * out
