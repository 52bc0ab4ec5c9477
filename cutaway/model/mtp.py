"""Multi-token prediction: heads that predict one token more each (DeepSeek-V3, 2412.19437).

    x_i = W [norm(e_{i+k}); norm(h_i)]        h'_i = norm(block(x)_i)        logits = head(h'_i)

e is the embedding of the k-th token after position i and h what the model's head reads there, or the head
before this one gave: so head k at position i predicts token i + k + 1. Table and head are the model's own.
MiMo's heads all read what the model's head reads (SGLang's multi_layer_eagle_worker_v2, 2601.02780).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.attention.common.mixer import LayerState
from cutaway.attention.common.visibility import Positions
from cutaway.layers.config import Norm
from cutaway.model.block import build_block
from cutaway.model.block_config import Block
from cutaway.position.rope import Rotation
from cutaway.shapes import Float


class MTPHead(nn.Module):
    """One head; its positions may begin anywhere, since its block attends by distances alone."""

    def __init__(self, config: Block, width: int, norm: Norm) -> None:
        super().__init__()
        self.embedding_norm, self.hidden_norm = norm.build(width), norm.build(width)
        self.join = nn.Linear(2 * width, width, bias=False)
        self.block = build_block(config, width)
        self.norm = norm.build(width)

    def forward(
        self,
        embedded: Float[Tensor, "b t d"],
        hidden: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        in_order: bool,
        state: LayerState | None = None,
    ) -> Float[Tensor, "b t d"]:
        x = self.join(torch.cat((self.embedding_norm(embedded), self.hidden_norm(hidden)), dim=-1))
        return self.norm(self.block(x, positions, rotation, in_order, state)[0])
