"""Softmax attention as a module: mha, mqa, gqa, local and the sparse kinds differ in their config alone.

    q = W_q x   k = W_k x   v = W_v x        cut into heads; q and k normed if the model does so, then rotated
    out = W_o [attend(q, k, v)]              attend is the softmax of backends/inputs.py

Query, key and value come from three matrices that can run side by side: none reads another's result.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from cutaway.attention.backends.choice import attend
from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.attention.common.heads import Heads, Temperature
from cutaway.attention.common.mixer import LayerState
from cutaway.attention.common.rotation import rotated
from cutaway.attention.common.visibility import Positions
from cutaway.attention.state.entries import append
from cutaway.hooks import tap
from cutaway.layers.config import Norm
from cutaway.position.rope import Rotation
from cutaway.shapes import Float


class SoftmaxAttention(nn.Module):
    """The heads of ``Heads``; a mechanism overrides what it changes.

    Taps ``q`` [b h t k], ``k`` [b g s k] and ``v`` [b g t v] as the scores see them, ``z`` [b h t v], each
    head's weighted sum of values, and ``q_unrotated`` and ``k_unrotated`` [b g t k], before they are rotated;
    the backend taps ``scores`` and ``pattern``.

    ``halves`` rounds keys and values to float16, as the runtime stores them; the gradient passes.

    The cache holds rotated keys, except where the rotation changes as the text grows: then it holds them as
    they are, and each call rotates all.
    """

    def __init__(self, config: Heads, width: int) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(width, config.heads * config.key_size, config.bias)
        there, sizes = config.projected, {"key": config.key_size, "value": config.values}
        self.key, self.value = (
            nn.Linear(width, config.groups * size, config.bias) if there[name] else nn.Identity()
            for name, size in sizes.items()
        )
        self.out = nn.Linear(config.heads * config.values, width, config.out_bias)
        sizes = config.normed
        self.query_norm = _norm(config, sizes["query_norm"])
        self.key_norm = _norm(config, sizes["key_norm"]) if config.kv_layer is None else nn.Identity()
        self.value_norm = config.value_norm.build(config.values) if config.value_norm else nn.Identity()
        self.lends: int | None = None  # its layer's number, where a later layer reads its keys and values
        self.relative = config.relative.build(config.heads) if config.relative else None
        self.sinks = nn.Parameter(torch.zeros(config.heads)) if config.sinks else None
        self.grows = config.position is not None and config.position.grows
        self.scale = config.key_size**-0.5 if config.scale is None else config.scale
        self.halves = False

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        in_order: bool,
        state: LayerState | None,
    ) -> Float[Tensor, "b t m"]:
        q = self._normed(self.query_norm, self._clipped(self.query(x)), self.config.heads)
        if rotation is not None:
            q = tap("q_unrotated", q)
        if self.config.kv_layer is None:
            k, v, key_positions = self._keys_and_values(x, positions, rotation, state)
        else:
            assert positions.shared is not None
            k, v, key_positions = positions.shared[self.config.kv_layer]
        if self.lends is not None and positions.shared is not None:
            positions.shared[self.lends] = k, v, key_positions
        q = q if rotation is None else self._rotated(self.query_norm, q, rotation)
        q = tap(
            "q", q if self.config.temperature is None else q * _sharper(self.config.temperature, positions, q)
        )
        z = tap("z", self.attend(q, k, v, positions, key_positions, in_order))
        return self.out(join(self.output(x, z)))

    def _clipped(self, x: Float[Tensor, "b t n"]) -> Float[Tensor, "b t n"]:
        clip = self.config.clip
        return x if clip is None else x.clamp(-clip, clip)

    def _keys_and_values(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        state: LayerState | None,
    ) -> tuple[Float[Tensor, "b g s k"], Float[Tensor, "b g s v"], Positions]:
        """Keys and values that queries may see, with those in the state, and their positions."""
        k = self._clipped(self.key(x))
        v = k if self.config.value_of_key else self._clipped(self.value(x))
        k = self._normed(self.key_norm, k, self.config.groups)
        if rotation is not None:
            k = tap("k_unrotated", k)
        v = v if self.config.value_scale == 1.0 else v * self.config.value_scale
        v = tap("v", self._stored(self.value_norm(cut(v, self.config.groups))))
        key_positions, key_rotation = positions, rotation
        if rotation is not None and not self.grows:
            k, key_rotation = self._rotated(self.key_norm, k, rotation), None
        if state is not None:
            entries, key_pos = append(state, {"k": k, "v": v}, positions.pos)
            k, v, key_positions = entries["k"], entries["v"], Positions(key_pos)
            key_rotation = key_rotation and key_rotation.at(key_pos)
        k = k if key_rotation is None else self._rotated(self.key_norm, k, key_rotation)
        return tap("k", self._stored(k)), v, key_positions

    def _stored(self, x: Float[Tensor, "b g s k"]) -> Float[Tensor, "b g s k"]:
        return x + (x.half().to(x.dtype) - x).detach() if self.halves else x

    def output(self, x: Float[Tensor, "b t d"], z: Float[Tensor, "b h t v"]) -> Float[Tensor, "b h t v"]:
        """What the output matrix multiplies: z, where a mechanism does nothing to it."""
        return z

    def attend(
        self,
        q: Float[Tensor, "b h t k"],
        k: Float[Tensor, "b g s k"],
        v: Float[Tensor, "b g s v"],
        query: Positions,
        key: Positions,
        in_order: bool,
    ) -> Float[Tensor, "b h t v"]:
        return attend(
            AttentionInputs(
                *(q, k, v, query, key, self.config.visibility, self.scale, self.config.softcap, in_order),
                bias=self.relative,
                sinks=self.sinks,
            )
        )

    def _normed(self, norm: nn.Module, x: Float[Tensor, "b t n"], heads: int) -> Float[Tensor, "b h t k"]:
        """Normed head by head, or before there are heads, or not yet."""
        if self.config.qk_norm_after:
            return cut(x, heads)
        return norm(cut(x, heads)) if self.config.qk_norm_over == "head" else cut(norm(x), heads)

    def _rotated(
        self, norm: nn.Module, x: Float[Tensor, "b h t k"], rotation: Rotation
    ) -> Float[Tensor, "b h t k"]:
        """Rotated, and normed after it where the config says so."""
        x = rotated(x, rotation)
        return norm(x) if self.config.qk_norm_after else x


class EachNorm(nn.Module):
    """A norm of each head with weights of its own, on all heads side by side."""

    def __init__(self, config: Norm, heads: int, size: int) -> None:
        super().__init__()
        self.plain = replace(config, weight=False).build(size)
        self.weight = nn.Parameter(torch.ones(heads, size))

    def forward(self, x: Float[Tensor, "b t n"]) -> Float[Tensor, "b t n"]:
        return (self.plain(x.unflatten(-1, self.weight.shape)) * self.weight).flatten(-2)


def _norm(config: Heads, size: int) -> nn.Module:
    """The norm of queries or keys, of this many numbers."""
    if config.qk_norm is None:
        return nn.Identity()
    if config.qk_norm_over == "each":
        return EachNorm(config.qk_norm, size // config.key_size, config.key_size)
    return config.qk_norm.build(size)


def _sharper(config: Temperature, positions: Positions, q: Tensor) -> Float[Tensor, "b 1 t 1"]:
    """The factor of each query."""
    turns = ((positions.pos.clamp(min=0) + config.first) // config.original).double()
    return (1 + config.beta * turns.log1p())[:, None, :, None].to(q.dtype)


def cut(x: Float[Tensor, "b t n"], heads: int) -> Float[Tensor, "b h t k"]:
    """Each token's vector cut into one vector a head."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join(x: Float[Tensor, "b h t v"]) -> Float[Tensor, "b t n"]:
    """The heads' vectors concatenated."""
    return x.transpose(1, 2).flatten(2)
