"""What a norm and an MLP are, as data. Imports no torch; ``build`` makes the module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Norm:
    """Root-mean-square norm (1910.07467) or layer norm (1607.06450), with the epsilon inside the root."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5

    def build(self, width: int) -> nn.Module:
        from cutaway.layers.norm import LayerNorm, RMSNorm

        return {"rms": RMSNorm, "layer": LayerNorm}[self.kind](width, self.eps)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        return {"weight": (width,)} | ({"bias": (width,)} if self.kind == "layer" else {})


@dataclass(frozen=True)
class MLP:
    """Two matrices around an activation, or three when gated (SwiGLU and its kin, 2002.05202)."""

    hidden: int
    activation: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    gated: bool = True
    bias: bool = False

    def build(self, width: int) -> nn.Module:
        from cutaway.layers import mlp

        return mlp.MLP(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        wide, narrow = ("gate", "up") if self.gated else ("up",), ("down",)
        matrices = dict.fromkeys(wide, (self.hidden, width)) | dict.fromkeys(narrow, (width, self.hidden))
        biases = {f"{name}.bias": shape[:1] for name, shape in matrices.items()} if self.bias else {}
        return {f"{name}.weight": shape for name, shape in matrices.items()} | biases
