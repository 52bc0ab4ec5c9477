"""An EAGLE-3 head (2503.01840) as a module, for training. runtime/draft_heads.py runs trained ones.

    h_i = W [a; b; c]                       a, b, c: the model's residual stream before three of its layers
    x_i = [norm(e_{i+1}); norm(h_i)]        e: the model's embeddings
    h'_i = h_i + attention(x)_i, and the MLP of it        logits of token i + 2 = head(norm(h'_i))

In drafting, the second token comes from the head's own h'_i in place of the model's h_{i+1}, and so on. So
training unrolls it too (the paper's training-time test): step k reads the h' of step k - 1 at each position,
with the token k further on. Its queries attend to the keys of step 0 up to their own position, and to those
of steps 1 to k at it: what the head would have read when it drafts k tokens from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.gguf import Packed
from cutaway.layers.mlp import ACTIVATIONS
from cutaway.position.rope import RotaryEmbedding, rotate
from cutaway.quantization import formats
from cutaway.shapes import Bool, Float, Int
from cutaway.weights.eagle3 import Eagle3

IN_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
IN_MLP = ("gate_proj", "up_proj", "down_proj")
NORMS = ("input_layernorm", "hidden_norm", "post_attention_layernorm")  # of the embedding, of h, of the MLP
OUTSIDE = ("fc", "norm", "lm_head")


def published(name: str) -> str:
    """The name in a published folder, without that of the layer, of a matrix or norm of `Eagle3Head`."""
    return f"self_attn.{name}" if name in IN_ATTENTION else f"mlp.{name}" if name in IN_MLP else name


class Eagle3Head(nn.Module):
    """The head ``of`` a folder with these weights, by their published names (weights/eagle3.py)."""

    fc: nn.Linear
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear
    lm_head: nn.Linear
    input_layernorm: nn.Module
    hidden_norm: nn.Module
    post_attention_layernorm: nn.Module
    norm: nn.Module

    def __init__(self, of: Eagle3, weights: Mapping[str, Packed]) -> None:
        super().__init__()
        block: Any = of.config.blocks[0]
        attention = block.attention
        self.heads, self.groups, self.size = attention.heads, attention.groups, attention.key_size
        self.rotary, self.scale = RotaryEmbedding(attention.position), attention.key_size**-0.5
        self.activation = ACTIVATIONS[block.mlp.activation]
        self.normed_stream, self.watches, self.ids = of.normed_stream, of.watches, of.ids
        self.table = None if of.table is None else torch.from_numpy(formats.unpack(of.table))
        for name in (*IN_ATTENTION, *IN_MLP, *NORMS, *OUTSIDE):
            found = torch.from_numpy(formats.unpack(weights[f"{published(name)}.weight"]))
            module: Any = of.norm.build(len(found))
            if found.ndim == 2:
                bias = weights.get(f"{published(name)}.bias")
                module = nn.Linear(found.shape[1], found.shape[0], bias=bias is not None)
                if bias is not None:
                    module.bias = nn.Parameter(torch.from_numpy(formats.unpack(bias)))
            module.weight = nn.Parameter(found)
            self.add_module(name, module)

    def trained(self) -> dict[str, Tensor]:
        """The weights by their published names."""
        return {
            f"{published(module)}.{kind}": value.detach()
            for (module, _, kind), value in (
                (name.rpartition("."), value) for name, value in self.named_parameters()
            )
        }

    def unrolled(
        self,
        embedded: list[Float[Tensor, "b t e"]],
        streams: Float[Tensor, "b t s"],
        pos: Int[Tensor, "b t"],
        visible: Bool[Tensor, "b t t"],
    ) -> list[Float[Tensor, "b t d"]]:
        """The h' of each step. ``embedded``: for each, the embeddings of the tokens that it reads;
        ``streams``: the model's three, side by side; ``visible``: which positions [query key] are of one
        text, and not later.
        """
        h, found = self.fc(streams), list[Tensor]()
        own: list[tuple[Tensor, Tensor]] = []
        mask = torch.zeros(visible.shape, device=h.device).masked_fill(~visible, -torch.inf)[:, None]
        for step, e in enumerate(embedded):
            h = self._block(e, h, pos + step, mask, own)
            found.append(h)
        return found

    def _block(
        self, e: Tensor, h: Tensor, pos: Tensor, mask: Tensor, own: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """h'; the keys and values of the step are put behind those of the steps before it."""
        stream = self.hidden_norm(h)
        x = torch.cat((self.input_layernorm(e), stream), dim=-1)
        rotation = self.rotary.rotation(pos)
        query = rotate(self._of_heads(self.q_proj(x), self.heads), rotation)
        key, value = (self._of_heads(project(x), self.groups) for project in (self.k_proj, self.v_proj))
        own.append((self._for_all(rotate(key, rotation)), self._for_all(value)))
        keys, values = own[0]
        scores = [query @ keys.transpose(-1, -2) * self.scale + mask]
        scores += [(query * k).sum(-1, keepdim=True) * self.scale for k, _ in own[1:]]
        weights = torch.cat(scores, dim=-1).softmax(-1)
        t = weights.shape[2]
        mixed = weights[..., :t] @ values
        for n, (_, v) in enumerate(own[1:]):
            mixed = mixed + weights[..., t + n : t + n + 1] * v
        h = (stream if self.normed_stream else h) + self.o_proj(mixed.transpose(1, 2).flatten(2))
        y = self.post_attention_layernorm(h)
        return h + self.down_proj(self.activation(self.gate_proj(y)) * self.up_proj(y))

    def _of_heads(self, x: Float[Tensor, "b t n"], count: int) -> Float[Tensor, "b h t k"]:
        return x.unflatten(-1, (count, self.size)).transpose(1, 2)

    def _for_all(self, x: Float[Tensor, "b g t k"]) -> Float[Tensor, "b h t k"]:
        """The key or value head of each query head."""
        return x.repeat_interleave(self.heads // self.groups, dim=1)

    def log_probs(self, h: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        """The log-probabilities of the ids that the head scores."""
        return F.log_softmax(self.lm_head(self.norm(h)).float(), dim=-1)
