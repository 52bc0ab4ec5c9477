"""Softmax attention as a module: mha, mqa, gqa, local and the sparse kinds are this equation over different
data.

    q = W_q x   k = W_k x   v = W_v x        cut into heads; q and k normed if the model does so, then turned
    out = W_o [attend(q, k, v)]              attend is the softmax of score.py

Query, key and value come from three matrices that could run side by side: none reads another's result.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.attention.backends import attend
from cutaway.attention.parts.heads import Heads
from cutaway.attention.parts.mixer import Memory
from cutaway.attention.parts.score import Problem
from cutaway.attention.parts.state import append
from cutaway.attention.parts.visibility import Places
from cutaway.hooks import tap
from cutaway.position.rope import Rotation, rotate
from cutaway.shapes import Float


class SoftmaxAttention(nn.Module):
    """Taps ``q`` [b h t k], ``k`` [b g s k] and ``v`` [b g t v] as the scores see them, ``mixed`` [b h t v]
    what each head gathered; the path taps ``scores`` and ``pattern``.

    Keys are remembered turned, except where their turning changes as the text grows: then all are turned
    anew.
    """

    def __init__(self, config: Heads, width: int) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(width, config.heads * config.key_size, config.bias)
        self.key = nn.Linear(width, config.groups * config.key_size, config.bias)
        self.value = nn.Linear(width, config.groups * config.values, config.bias)
        self.out = nn.Linear(config.heads * config.values, width, config.out_bias)
        sizes = config.normed
        self.query_norm = config.qk_norm.build(sizes["query_norm"]) if config.qk_norm else nn.Identity()
        self.key_norm = config.qk_norm.build(sizes["key_norm"]) if config.qk_norm else nn.Identity()
        self.relative = config.relative.build(config.heads) if config.relative else None
        self.sinks = nn.Parameter(torch.zeros(config.heads)) if config.sinks else None
        self.grows = config.position is not None and config.position.grows
        self.scale = config.key_size**-0.5 if config.scale is None else config.scale

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        places: Places,
        rotation: Rotation | None,
        in_order: bool,
        state: Memory | None,
    ) -> Float[Tensor, "b t d"]:
        return self.out(self.gathered(x, places, rotation, in_order, state))

    def gathered(
        self,
        x: Float[Tensor, "b t d"],
        places: Places,
        rotation: Rotation | None,
        in_order: bool,
        state: Memory | None,
    ) -> Float[Tensor, "b t n"]:
        """What the heads read, laid end to end: all of the mechanism but the matrix that brings it back."""
        q = self._normed(self.query_norm, self.query(x), self.config.heads)
        k = self._normed(self.key_norm, self.key(x), self.config.groups)
        v = tap("v", cut(self.value(x), self.config.groups))
        key_places, key_rotation = places, rotation
        if rotation is not None and not self.grows:
            k, key_rotation = rotate(k, rotation), None
        if state is not None:
            entries, key_pos = append(state, {"k": k, "v": v}, places.pos)
            k, v, key_places = entries["k"], entries["v"], Places(key_pos)
            key_rotation = key_rotation and key_rotation.at(key_pos)
        q = tap("q", q if rotation is None else rotate(q, rotation))
        k = tap("k", k if key_rotation is None else rotate(k, key_rotation))
        return join(tap("mixed", self.mixed(q, k, v, places, key_places, in_order)))

    def mixed(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b g s k"],
        v: Float[Tensor, "b g s v"],
        query: Places,
        key: Places,
        in_order: bool,
    ) -> Float[Tensor, "b h t v"]:
        """What each head gathers."""
        return attend(
            Problem(
                q=q,
                k=k,
                v=v,
                query=query,
                key=key,
                visibility=self.config.visibility,
                scale=self.scale,
                softcap=self.config.softcap,
                in_order=in_order,
                bias=self.relative,
                sinks=self.sinks,
            )
        )

    def _normed(self, norm: nn.Module, x: Float[Tensor, "b t n"], heads: int) -> Float[Tensor, "b h t k"]:
        """Normed head by head, or before there are heads."""
        return cut(norm(x), heads) if self.config.qk_norm_over == "width" else norm(cut(x, heads))


def cut(x: Float[Tensor, "b t n"], heads: int) -> Float[Tensor, "b h t k"]:
    """One vector a token becomes one vector a head."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join(x: Float[Tensor, "b h t v"]) -> Float[Tensor, "b t n"]:
    """The heads' vectors laid end to end."""
    return x.transpose(1, 2).flatten(2)
