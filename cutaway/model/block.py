"""A block: attention moves information between tokens, the MLP works on each token alone.

Both add to the residual stream.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cutaway.attention.common.visibility import Positions
from cutaway.hooks import tap
from cutaway.layers.altup import AltUp, Laurel
from cutaway.layers.moe import MoE, Routing
from cutaway.layers.per_layer import PerLayerInput
from cutaway.model.block_config import Block as Config
from cutaway.position.rope import Rotation
from cutaway.shapes import Float


class Source(NamedTuple):
    """An encoder's output for another text, which cross-attention reads, and where its tokens are."""

    values: Float[Tensor, "b s m"]
    positions: Positions


class Block(nn.Module):
    """middle = x + attention(norm(x)); out = middle + mlp(norm(middle)), or mlp(norm(x)) in parallel.

    Taps ``middle`` and ``out`` [b t d]: the residual stream after each half. A mixture of experts also
    returns its routing. ``own``: the tokens' per-layer embeddings, where there are any. With AltUp x and
    ``out`` are all streams side by side, ``middle`` is of the first (layers/altup.py).
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.parallel, self.residual = config.parallel, config.residual

        def norm(name: str) -> nn.Module:
            return config.norm.build(width) if name in config.norms else nn.Identity()

        self.attention_norm = norm("attention_norm")
        self.attention = config.attention.build(width)
        self.attention_post_norm = norm("attention_post_norm")
        self.mlp_norm = norm("mlp_norm")
        self.mlp = config.mlp and config.mlp.build(width)
        self.shares = config.beside
        self.beside = config.beside and config.beside.mixer.build(width)
        self.mlp_post_norm = norm("mlp_post_norm")
        own, mlp = config.per_layer, config.mlp
        self.per_layer = PerLayerInput(own, width, mlp.activation, config.norm) if own and mlp else None
        self.scale = nn.Parameter(torch.ones(1)) if config.scaled else None
        self.shared = config.shared and config.shared.build(width)
        self.altup = AltUp(config.streams, width, config.norm) if config.streams else None
        self.laurel = Laurel(config.laurel, width, config.norm) if config.laurel else None

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        in_order: bool,
        state: Any,
        own: Float[Tensor, "b t p"] | None = None,
    ) -> tuple[Float[Tensor, "b t d"], Routing | None]:
        streams = x if self.altup is None else self.altup.predicted(x)
        x = x if self.altup is None else streams[:, :, 0]
        given = x
        if self.shared is not None:  # its output is read by the mixer, and not added to the residual stream
            of, state = (None, None) if state is None else (state.second, state.first)
            given, rotation = x + self.shared(x, positions, rotation, in_order, of), None
        read = self.attention_norm(given)
        attended = self._mixed(_cast_once(read), positions, rotation, in_order, state)
        middle = x + self._scaled(self.attention_post_norm(attended))
        if self.laurel is not None:
            middle = (middle + self.laurel(read)) / math.sqrt(2)
        middle = tap("middle", middle)
        if self.mlp is None:
            return tap("out", middle), None
        read = {None: middle, "own": x, "shared": read}[self.parallel]
        routing = None
        if isinstance(self.mlp, MoE):
            output, routing = self.mlp(_cast_once(self.mlp_norm(read)), positions.pos)
        else:
            output = self.mlp(read, self._mlp_normed)
        out = middle + self._scaled(self.mlp_post_norm(output))
        if self.altup is not None and self.per_layer is not None:
            first, *others = self.altup.corrected(streams, out).unbind(2)
            more = self.per_layer(first * self.altup.scale, own)
            return tap("out", torch.cat((first, *(each + more for each in others)), dim=-1)), routing
        if self.per_layer is not None:
            out = out + self.per_layer(out, own)
        return tap("out", out if self.scale is None else out * self.scale), routing

    def _mixed(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        in_order: bool,
        state: Any,
    ) -> Float[Tensor, "b t d"]:
        """What attention outputs, and a second mixer, if there is one, beside it."""
        if self.beside is None or self.shares is None:
            return self.attention(x, positions, rotation, in_order, state)
        states = (None, None) if state is None else (state.first, state.second)
        (a_in, b_in), (a_out, b_out) = self.shares.inputs, self.shares.outputs
        attended = self.attention(x * a_in, positions, rotation, in_order, states[0])
        return attended * a_out + self.beside(x * b_in, positions, None, in_order, states[1]) * b_out

    def _mlp_normed(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return _cast_once(self.mlp_norm(x))

    def _scaled(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        return x if self.residual == 1.0 else x * self.residual


class CrossBlock(nn.Module):
    """Attention to the own text, to a source, and an MLP: each adds f(norm(x)) to x, or x = norm(x + f(x)).

    Taps ``middle`` and ``out`` [b t d]: the residual stream after both attentions, and after all.
    """

    def __init__(self, config: Config, width: int) -> None:
        super().__init__()
        self.norm_first = config.pre_norm
        self.attention_norm = config.norm.build(width)
        self.attention = config.attention.build(width)
        self.cross_norm = config.norm.build(width)
        self.cross = config.cross.build(width)
        self.mlp_norm = config.norm.build(width)
        assert config.mlp is not None  # the config checks it
        self.mlp = config.mlp.build(width)
        self.attention_post_norm, self.cross_post_norm, self.mlp_post_norm = (
            config.norm.build(width) if config.post_norm else nn.Identity() for _ in range(3)
        )

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        rotation: Rotation | None,
        in_order: bool,
        state: Any,
        own: None,
        source: Source | None = None,
    ) -> tuple[Float[Tensor, "b t d"], None]:
        """``source`` may be None once a state holds its keys and values."""
        first, second = (None, None) if state is None else (state.first, state.second)
        values, where = (None, None) if source is None else source

        def attended(x: Tensor) -> Tensor:
            return self.attention_post_norm(self.attention(x, positions, rotation, in_order, first))

        def crossed(x: Tensor) -> Tensor:
            return self.cross_post_norm(self.cross(x, positions, values, where, second))

        x = self._added(self._added(x, self.attention_norm, attended), self.cross_norm, crossed)
        out = self._added(tap("middle", x), self.mlp_norm, lambda x: self.mlp_post_norm(self.mlp(x)))
        return tap("out", out), None

    def _added(self, x: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        return x + part(_cast_once(norm(x))) if self.norm_first else norm(x + part(_cast_once(x)))


def build_block(config: Config, width: int) -> Block | CrossBlock:
    """The module of a block."""
    return CrossBlock(config, width) if config.cross else Block(config, width)


def share_relative(blocks: nn.ModuleList) -> None:
    """Give every block the first one's table of relative positions."""
    first, *others = blocks
    for each in others:
        each.attention.relative = first.attention.relative  # type: ignore[union-attr]


def _cast_once(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """x in autocast's type: otherwise each projection casts x, and autograd keeps each copy."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
