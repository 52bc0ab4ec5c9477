"""The decoder: token ids in, a logit for every possible next token out (1706.03762, GPT-2).

    x = embed(ids)        for each block: x = block(x)        logits = head(norm(x))

It sees ids and positions, and never a target, a tokenizer or a file. Earlier tokens are in the ``State`` that
it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.attention.common.mixer import LayerState, Wrap
from cutaway.attention.common.visibility import Positions
from cutaway.errors import UserError
from cutaway.hooks import Listener, tap
from cutaway.layers.altup import Streams
from cutaway.layers.moe import Routing
from cutaway.layers.packed import scores
from cutaway.layers.per_layer import PerLayerEmbedding
from cutaway.model import config as conf
from cutaway.model.block import Source, build_block, share_relative
from cutaway.model.mtp import MTPHead
from cutaway.model.shared import EMBEDDED
from cutaway.position import mrope
from cutaway.position.rope import RotaryEmbedding, Rotation
from cutaway.shapes import Float, Int


class State:
    """The KV caches and recurrent states of all layers. ``length`` counts entries, padding included.

    ``edit``: the listeners of a forward pass, by its first position; engines apply them.
    """

    def __init__(
        self, blocks: list[LayerState], edit: Callable[[int], Mapping[str, Listener]] | None = None
    ) -> None:
        self.blocks = blocks
        self.edit = edit

    @property
    def length(self) -> int:
        return self.blocks[0].length if self.blocks else 0

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)

    def truncate(self, length: int) -> None:
        """Drop everything after the first ``length`` entries.

        UserError, before anything is dropped, if a layer no longer has them all.
        """
        if not all(block.can_truncate(length) for block in self.blocks):
            raise UserError(f"the state no longer holds the first {length} tokens: read the text again")
        for block in self.blocks:
            block.truncate(length)

    def snapshot(self) -> State:
        """A copy that later tokens do not change."""
        return State([block.snapshot() for block in self.blocks], self.edit)


class Decoder(nn.Module):
    """A pure function of its config. Taps ``embed`` [b t d], each block's values, and ``logits`` [b t v]."""

    def __init__(self, config: conf.Decoder) -> None:
        super().__init__()
        self.config = config
        self.embedding: Any = (
            nn.Embedding(config.vocab, config.width)
            if config.table is None
            else config.table.build(config.vocab, config.width)
        )
        self.position = config.position.build(config.width) if config.position else None
        self.blocks = nn.ModuleList(build_block(block, config.width) for block in config.blocks)
        if config.one_relative:
            share_relative(self.blocks)
        self.norm = config.norm.build(config.width) if config.last_norm else nn.Identity()
        own = config.embedding_norm
        self.embedding_norm = nn.Identity() if own is None else own.build(config.width)
        self.per_layer = config.per_layer and PerLayerEmbedding(
            config.per_layer, len(config.blocks), config.width, config.norm
        )
        self.streams = Streams(config.streams, config.width) if config.streams else None
        for block in config.blocks:
            of = block.attention
            if (source := getattr(of, "kv_layer", getattr(of, "index_layer", None))) is not None:
                lender: Any = self.blocks[source]
                lender.attention.lends = source
        self.head = None if config.tied else nn.Linear(config.width, config.vocab, config.head_bias)
        self.logits_bias = nn.Parameter(torch.zeros(config.vocab)) if config.logits_bias else None
        for block, built in zip(config.blocks, self.blocks, strict=True):
            if block.shared and block.shared.source is not None:
                lending: Any = self.blocks[block.shared.source]
                built.shared.borrow(lending.shared)  # type: ignore[union-attr, operator]
        self.mtp = nn.ModuleList(MTPHead(block, config.width, config.norm) for block in config.mtp)
        positions = [block.position for block in (*config.blocks, *config.mtp)]
        distinct = list(dict.fromkeys(position for position in positions if position is not None))
        self.rotary = [RotaryEmbedding(position) for position in distinct]
        self.rotary_of_block = [
            None if position is None else distinct.index(position) for position in positions
        ]
        self.apply(initialise)

    def new_state(self, wrap: Wrap | None = None) -> State:
        """An empty state for one batch; ``wrap`` stores each layer's in another way (``Quantized.of(8)``)."""
        own = [block.state() for block in self.config.blocks]
        return State(own if wrap is None else [wrap(state) for state in own])

    def forward(
        self,
        ids: Int[Tensor, "b t"],
        pos: Int[Tensor, "b t"],
        state: State | None = None,
        documents: Int[Tensor, "b t"] | None = None,
        last: bool = False,
        axes: Int[Tensor, "a b t"] | None = None,
        source: Source | None = None,
    ) -> Float[Tensor, "b n v"]:
        """Logits at every position, n = t, or only at the last if ``last``, n = 1.

        ``pos`` are absolute positions, -1 for padding; ``documents`` keeps texts packed into one row apart,
        and excludes a ``state``. ``axes`` are the coordinates by which M-RoPE rotates patches of images
        (2409.12191), those of text by default; ``pos`` still orders the tokens. ``source``: what blocks with
        cross-attention read.
        """
        x, _ = self.routed(ids, pos, state, documents, axes=axes, source=source)
        return self.logits(x[:, -1:] if last else x)

    def routed(
        self,
        ids: Int[Tensor, "b t"],
        pos: Int[Tensor, "b t"],
        state: State | None = None,
        documents: Int[Tensor, "b t"] | None = None,
        in_order: bool | None = None,
        axes: Int[Tensor, "a b t"] | None = None,
        source: Source | None = None,
    ) -> tuple[Float[Tensor, "b t d"], tuple[Routing, ...]]:
        """The residual stream after the last block, and the routing of each mixture of experts.

        ``in_order`` promises that every row is 0, 1, 2, ..., so that no mask is needed; None checks.
        """
        if state is not None and documents is not None:
            raise UserError("packed documents cannot share a state: give each document a state of its own")
        positions = Positions(pos, documents, {})
        x = self._embedded(ids, pos)
        if any(block.shared for block in self.config.blocks) and positions.shared is not None:
            positions.shared[EMBEDDED] = x
        each = [None] * len(self.blocks) if self.per_layer is None else self.per_layer(ids, x).unbind(2)
        x = self.streams.expanded(x) if self.streams is not None else x
        rotations = self._rotations(pos, axes)
        if in_order is None:
            in_order = (state is None or state.length == 0) and documents is None and _in_order(pos)
        routings: list[Routing] = []
        for i, block in enumerate(self.blocks):
            layer_state = None if state is None else state.blocks[i]
            more = () if source is None else (source,)
            x, routing = block(x, positions, rotations[i], in_order, layer_state, each[i], *more)
            if routing is not None:
                routings.append(routing)
        return x, tuple(routings)

    def logits(self, x: Float[Tensor, "b t n"]) -> Float[Tensor, "b t v"]:
        """The head's logits of a residual stream: the last block's, or an earlier one's (the logit lens)."""
        return self.scored(self.normed(x))

    def ahead(
        self,
        n: int,
        ids: Int[Tensor, "b t"],
        hidden: Float[Tensor, "b t d"],
        pos: Int[Tensor, "b t"],
        state: LayerState | None = None,
    ) -> Float[Tensor, "b t d"]:
        """What head n of ``mtp`` gives, of which ``scored`` makes logits: of the tokens that follow each
        position, and what the head of the model, or the head before, has there.
        """
        rotation, head = self._rotations(pos, None)[len(self.blocks) + n], self.mtp[n]
        in_order = state is None and _in_order(pos)
        return head(self.embedding(ids), hidden, Positions(pos, None, {}), rotation, in_order, state)

    def scored(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t v"]:
        """The logits of what the head reads."""
        logits = scores(self.embedding, x) if self.head is None else self.head(x)
        if self.logits_bias is not None:
            logits = logits + self.logits_bias
        if self.config.softcap is not None:
            logits = self.config.softcap * torch.tanh(logits / self.config.softcap)
        return tap("logits", logits)

    def normed(self, x: Float[Tensor, "b t n"]) -> Float[Tensor, "b t d"]:
        """The head's input: the residual stream, normed."""
        x = self.streams.merged(x) if self.streams is not None else x
        return self.norm(x) if self.config.logit_scale == 1.0 else self.norm(x) * self.config.logit_scale

    def _embedded(self, ids: Int[Tensor, "b t"], pos: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        x = self.embedding(ids)
        if self.config.embedding_scale != 1.0:
            x = x * self.config.embedding_scale
        x = self.embedding_norm(x) if self.config.norm_then_position else x
        if self.position is not None:
            x = x + self.position(pos.clamp(min=0) + getattr(self.config.position, "offset", 0))
        return tap("embed", x if self.config.norm_then_position else self.embedding_norm(x))

    def _rotations(self, pos: Int[Tensor, "b t"], axes: Int[Tensor, "a b t"] | None) -> list[Rotation | None]:
        """Each block's rotation; blocks with the same positions share one."""
        if axes is not None and not any(isinstance(one.config, mrope.Config) for one in self.rotary):
            raise UserError("axes are for M-RoPE: this model rotates by one position a token")
        made = [_rotation(rotary, pos, axes) for rotary in self.rotary]
        return [None if n is None else made[n] for n in self.rotary_of_block]


def _rotation(
    rotary: RotaryEmbedding, pos: Int[Tensor, "b t"], axes: Int[Tensor, "a b t"] | None
) -> Rotation:
    if axes is not None and isinstance(rotary.config, mrope.Config):
        return mrope.rotation(rotary.config, axes)
    return rotary.rotation(pos)


def initialise(module: nn.Module) -> None:
    """The weights that training starts from: matrices normal with deviation 0.02, biases zero (GPT-2)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _in_order(pos: Int[Tensor, "b t"]) -> bool:
    """Whether every row is 0, 1, 2, ...: then causal attention needs no mask. False while compiling."""
    if torch.compiler.is_compiling():
        return False
    return bool((pos == torch.arange(pos.shape[1], device=pos.device)).all())
