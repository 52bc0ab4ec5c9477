"""A mixture of experts: many MLPs, of which each token passes a few that a router picks for it.

    p = softmax(W_r x)                       the router's share for each expert
    C = the top_k experts with the largest p
    y = sum over e in C of w_e MLP_e(x)      w_e = p_e / sum over C of p, or p_e as it is

What a model knows grows with all its experts, what a token costs only with those it passes. Shazeer et al.
(1701.06538) put it between LSTM layers; Switch (2101.03961) sends a token of a transformer to one expert;
Mixtral (2401.04088) to two of eight, whose weights sum to one; Qwen3-MoE (2505.09388) to eight of 128.
DeepSeekMoE (2401.06066) adds an expert that all tokens pass, so that the others need not all learn what every
token needs; Qwen2-MoE multiplies what that one says by a gate, sigmoid(w . x).

No expert has a capacity here and no token is dropped: a token's experts depend on nothing but the token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cutaway.hooks import tap
from cutaway.layers.config import MoE as Config
from cutaway.layers.norm import widened
from cutaway.shapes import Float, Int


class Routing(NamedTuple):
    """Where a layer sent its tokens: the router's ``scores`` for all experts, and its ``choice`` of them."""

    scores: Float[Tensor, "b t e"]
    choice: Int[Tensor, "b t k"]


class MoE(nn.Module):
    """The sum of what a token's experts say, each times its weight, and of what the shared one says.

    Of experts with equal scores the first is chosen. Padding (a position of -1) goes to no expert. Taps
    ``scores`` [b t e], the router's softmax; ``choice`` [b t k], experts by number, the likeliest first, -1
    for none; ``weights`` [b t k]; ``read`` [b t d], what experts read; ``out`` [b t d]. Each expert taps
    ``experts.3.hidden`` [1 n f], of the n tokens that came to it; the shared one ``shared.hidden`` [b t f].
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.top_k, self.normalised = config.top_k, config.normalised
        self.router = nn.Linear(width, config.experts, bias=False)
        self.experts = nn.ModuleList(config.expert.build(width) for _ in range(config.experts))
        self.shared = config.common.build(width) if config.common else None
        self.shared_gate = nn.Linear(width, 1, bias=False) if config.shared_gate else None

    def forward(
        self, x: Float[Tensor, "b t d"], pos: Int[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b t d"], Routing]:
        scores = tap("scores", widened(self.router(x)).softmax(dim=-1))
        choice, weights = self._chosen(scores, pos, x.dtype)
        read = tap("read", x)
        said: Any = self._said
        # Each batch gives experts other shapes: all would be compiled anew. A decorator would load the
        # compiler, two seconds and 70 MB, wherever the model is imported.
        if torch.compiler.is_compiling():
            said = torch.compiler.disable(said)
        out = said(read.flatten(0, 1), choice.flatten(0, 1), weights.flatten(0, 1))
        out = out.view_as(x)
        if self.shared is not None:
            common = self.shared(read)
            out = out + (common if self.shared_gate is None else self.shared_gate(x).sigmoid() * common)
        return tap("out", out), Routing(scores, choice)

    def _chosen(
        self, scores: Float[Tensor, "b t e"], pos: Int[Tensor, "b t"], dtype: torch.dtype
    ) -> tuple[Int[Tensor, "b t k"], Float[Tensor, "b t k"]]:
        """The experts of each token and their weights. Sorted and not ``topk``, which leaves open who comes
        first of equals.
        """
        order = scores.sort(dim=-1, descending=True, stable=True).indices[..., : self.top_k]
        choice = tap("choice", order.where((pos >= 0)[..., None], -1))
        weights = scores.gather(-1, choice.clamp(min=0))
        if self.normalised:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return choice, tap("weights", weights.to(dtype))

    def _said(
        self, x: Float[Tensor, "n d"], choice: Int[Tensor, "n k"], weights: Float[Tensor, "n k"]
    ) -> Float[Tensor, "n d"]:
        """The weighted sum, expert by expert: each reads the tokens that chose it, at once."""
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, rank = (choice == e).nonzero(as_tuple=True)
            said = expert(x[None, token])[0]
            out = out.index_add(0, token, said * weights[token, rank, None])
        return out
