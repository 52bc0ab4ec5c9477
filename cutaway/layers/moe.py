"""A mixture of experts: many MLPs, and a router that sends each token to a few of them.

    p = softmax(W_r x)                       the router's probability of each expert
    C = the top_k experts with the largest p
    y = sum over e in C of w_e MLP_e(x)      w_e = p_e / sum over C of p, or p_e as it is

A model's capacity grows with all its experts, a token's cost only with those it passes.

- Shazeer et al. (1701.06538) put it between LSTM layers. Switch (2101.03961) sends a token of a transformer
  to one expert, Mixtral (2401.04088) to two of eight with weights that sum to one, Qwen3-MoE (2505.09388) to
  eight of 128.
- DeepSeekMoE (2401.06066) adds a shared expert that all tokens pass, so that the others need not all learn
  what every token needs. Qwen2-MoE multiplies its output by a gate, sigmoid(w . x).
- DeepSeek-V3 (2412.19437) scores each expert alone, by a sigmoid, and chooses within the best groups of
  experts. A bias is added to the scores for the choice alone; training moves it until all experts have the
  same load.
- LatentMoE (Nemotron 3): experts work on a smaller vector, between two matrices that all share.
- Llama 4 multiplies an expert's input, not its output, by its weight.
- Gemma 4 adds the experts to the dense MLP, each of the two normed before and after:

    y = norm(shared(norm(x))) + norm(experts(norm(x)))        logits = W_r norm(x) / sqrt(d), weights w_e s_e

No expert has a capacity here and no token is dropped: a token's experts depend on nothing but the token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cutaway.hooks import tap
from cutaway.layers import sparsemixer
from cutaway.layers.config import OWN_NORMS
from cutaway.layers.config import MoE as Config
from cutaway.layers.norm import widened
from cutaway.shapes import Float, Int


class Routing(NamedTuple):
    """The router's ``scores`` of all experts, and the ``expert_indices`` that it chose."""

    scores: Float[Tensor, "b t e"]
    expert_indices: Int[Tensor, "b t k"]


class MoE(nn.Module):
    """The weighted sum of the outputs of a token's experts, plus the output of the shared one.

    Of experts with equal scores the first is chosen. Padding (a position of -1) goes to no expert. Taps
    ``scores`` [b t e], the router's softmax; ``expert_indices`` [b t k], the likeliest first, -1 for padding;
    ``expert_weights`` [b t k]; ``input`` and ``out`` [b t d]. Each expert taps ``experts.3.hidden`` [1 n f],
    of the n tokens that it gets; the shared one ``shared.hidden`` [b t f].
    """

    router_norm: nn.Module
    experts_norm: nn.Module
    experts_post_norm: nn.Module
    shared_norm: nn.Module
    shared_post_norm: nn.Module

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.top_k, self.normalised, self.routing = config.top_k, config.normalised, config.router
        self.out_scale = config.out_scale
        self.router = nn.Linear(width, config.experts, config.router.bias)
        self.choice_bias = nn.Parameter(torch.zeros(config.experts)) if config.router.choice_bias else None
        inner = config.latent or width
        self.experts = nn.ModuleList(config.expert.build(inner) for _ in range(config.experts))
        self.latent_down = nn.Linear(width, inner, bias=False) if config.latent else nn.Identity()
        self.latent_up = nn.Linear(inner, width, bias=False) if config.latent else nn.Identity()
        self.normed = config.norms is not None
        for name in OWN_NORMS:
            setattr(self, name, config.norms.build(width) if config.norms else nn.Identity())
        self.expert_scale = nn.Parameter(torch.ones(config.experts)) if self.normed else None
        self.shared = config.common.build(width) if config.common else None
        self.shared_gate = nn.Linear(width, 1, bias=False) if config.shared_gate else None

    def forward(
        self, x: Float[Tensor, "b t d"], pos: Int[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b t d"], Routing]:
        logits = widened(self.router(self.router_norm(x) * x.shape[-1] ** -0.5 if self.normed else x))
        scores = tap(
            "scores", logits.sigmoid() if self.routing.score == "sigmoid" else logits.softmax(dim=-1)
        )
        if self.routing.score == "sparsemixer":
            expert_indices, weights = self._mixed(logits, pos, x.dtype)
        else:
            merit = self._merit(logits if self.routing.by_logits else scores)
            expert_indices, weights = self._chosen(scores, merit, pos, x.dtype)
        x_in = tap("input", x)
        read = self.latent_down(self.experts_norm(x_in))
        experts: Any = self._experts
        # Each batch gives experts other shapes, and each shape would be compiled. A decorator would load the
        # compiler, two seconds and 70 MB, wherever the model is imported.
        if torch.compiler.is_compiling():
            experts = torch.compiler.disable(experts)
        out = experts(read.flatten(0, 1), expert_indices.flatten(0, 1), weights.flatten(0, 1)).view_as(read)
        out = self.experts_post_norm(self.latent_up(out))
        if self.shared is not None:
            common = self.shared_post_norm(self.shared(self.shared_norm(x_in)))
            out = out + (common if self.shared_gate is None else self.shared_gate(x).sigmoid() * common)
        out = out if self.out_scale == 1.0 else out * self.out_scale
        return tap("out", out), Routing(scores, expert_indices)

    def _chosen(
        self,
        scores: Float[Tensor, "b t e"],
        merit: Float[Tensor, "b t e"],
        pos: Int[Tensor, "b t"],
        dtype: torch.dtype,
    ) -> tuple[Int[Tensor, "b t k"], Float[Tensor, "b t k"]]:
        """The experts of each token and their weights; sorted, because ``topk`` leaves ties open."""
        order = merit.sort(dim=-1, descending=True, stable=True).indices[..., : self.top_k]
        expert_indices = tap("expert_indices", order.where((pos >= 0)[..., None], -1))
        weights = scores.gather(-1, expert_indices.clamp(min=0))
        if self.normalised:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        weights = weights if self.routing.scale == 1.0 else weights * self.routing.scale
        if self.expert_scale is not None:
            weights = weights * self.expert_scale[expert_indices.clamp(min=0)]
        return expert_indices, tap("expert_weights", weights.to(dtype))

    def _mixed(
        self, logits: Float[Tensor, "b t e"], pos: Int[Tensor, "b t"], dtype: torch.dtype
    ) -> tuple[Int[Tensor, "b t k"], Float[Tensor, "b t k"]]:
        """The two experts of each token and their weights, by SparseMixer."""
        chosen, weights = sparsemixer.choose(logits, self.routing.jitter)
        expert_indices = tap("expert_indices", chosen.where((pos >= 0)[..., None], -1))
        return expert_indices, tap("expert_weights", weights.to(dtype))

    def _merit(self, scores: Float[Tensor, "b t e"]) -> Float[Tensor, "b t e"]:
        """The scores that choose experts: the router's, plus a bias; -inf outside the best groups."""
        of = self.routing
        merit = scores if self.choice_bias is None else scores + self.choice_bias
        if of.groups == 1:
            return merit
        grouped = merit.unflatten(-1, (of.groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1) if of.group_of_two else grouped.amax(-1)
        kept = best.sort(dim=-1, descending=True, stable=True).indices[..., : of.top_groups]
        open_ = torch.zeros_like(best, dtype=torch.bool).scatter(-1, kept, True)
        return grouped.masked_fill(~open_[..., None], -torch.inf).flatten(-2)

    def _experts(
        self, x: Float[Tensor, "n d"], expert_indices: Int[Tensor, "n k"], weights: Float[Tensor, "n k"]
    ) -> Float[Tensor, "n d"]:
        """The weighted sum, expert by expert: each reads all its tokens at once."""
        out = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, rank = (expert_indices == e).nonzero(as_tuple=True)
            own, of_token = x[None, token], weights[token, rank, None]
            y = expert(own * of_token)[0] if self.routing.on_input else expert(own)[0] * of_token
            out = out.index_add(0, token, y)
        return out
