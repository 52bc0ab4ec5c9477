"""A transformer that several layers share before their own mixer (Zamba, 2405.16712; Zamba 2, 2411.15242).

    m = W_out mlp(norm(attention(norm([x ; e]))))        e: the token's embedding, as the first layer reads it
    x = x + mixer(norm(x + m))

Attention reads a vector twice as wide as the model: what the layers before made of a token, and the token.
All matrices are those of the first layer that has this transformer, its ``source``; each layer that uses it
has W_out of its own, and low-rank matrices beside the shared ones, so that the same weights do not do the
same everywhere. Keys and values are each layer's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cutaway.attention.common.mixer import LayerState
from cutaway.attention.common.softmax import SoftmaxAttention
from cutaway.attention.common.visibility import Positions
from cutaway.hooks import tap
from cutaway.layers.mlp import ACTIVATIONS
from cutaway.model.block_config import Shared as Config
from cutaway.position.rope import Rotation
from cutaway.shapes import Float

EMBEDDED = -1  # under this number the decoder hands the embeddings to all layers


class Projection(nn.Module):
    """A matrix of this layer or of another, and a low-rank one of this layer beside it."""

    def __init__(self, columns: int, rows: int, own: bool, rank: int | None = None) -> None:
        super().__init__()
        self.shared = nn.Linear(columns, rows, bias=False) if own else None
        self.down = None if rank is None else nn.Linear(columns, rank, bias=False)
        self.up = None if rank is None else nn.Linear(rank, rows, bias=False)
        self.lender: list[Any] = []  # in a list, so that its weights are not this module's too

    def forward(self, x: Float[Tensor, "... n"]) -> Float[Tensor, "... m"]:
        matrix: Any = self.lender[0].shared if self.shared is None else self.shared
        y = matrix(x)
        return y if self.down is None or self.up is None else y + self.up(self.down(x))


class SharedAttention(SoftmaxAttention):
    """Softmax attention over heads, of vectors twice as wide as what it outputs."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__(config.attention, 2 * width)
        of, own, rank = config.attention, config.source is None, config.attention_rank
        self.query = Projection(2 * width, of.heads * of.key_size, own, rank)
        self.key = Projection(2 * width, of.groups * of.key_size, own, rank)
        self.value = Projection(2 * width, of.groups * of.values, own, rank)
        self.out = Projection(of.heads * of.values, width, own)


class SharedTransformer(nn.Module):
    """The input of a layer's mixer besides x. Taps ``hidden`` [b t f], the MLP's, and ``out`` [b t d]."""

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        own = config.source is None
        self.attention_norm = config.norm.build(2 * width) if own else None
        self.mlp_norm = config.norm.build(width) if own else None
        self.attention = SharedAttention(config, width)
        self.gate_up = Projection(width, 2 * config.hidden, own, config.rank)
        self.down = Projection(config.hidden, width, own)
        self.activation: Any = ACTIVATIONS[config.activation]
        self.out = nn.Linear(width, width, bias=False)
        self.lender: list[Any] = [self]

    def borrow(self, lender: SharedTransformer) -> None:
        """Read the matrices and norms of another layer's."""
        self.lender[:] = [lender]
        for name, module in self.named_modules():
            if isinstance(module, Projection):
                module.lender[:] = [lender.get_submodule(name)]

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        in_order: bool,
        state: LayerState | None,
    ) -> Float[Tensor, "b t d"]:
        assert positions.shared is not None
        of = self.lender[0]
        read = of.attention_norm(torch.cat((x, positions.shared[EMBEDDED]), dim=-1))
        attended = self.attention(read, positions, rotation, in_order, state)
        gate, up = self.gate_up(of.mlp_norm(attended)).chunk(2, dim=-1)
        return tap("out", self.out(self.down(tap("hidden", self.activation(gate) * up))))
