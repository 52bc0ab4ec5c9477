"""Encoder-decoders, one text in and another out: the recurrent translator of 2014, and a transformer.

    memory = encode(source)                     once
    logits = decode(target so far, memory)      what the next word may be

``Recurrent`` (1406.1078, 1409.0473, 1508.04025): a GRU reads the source in both directions and outputs a
vector a word; a second GRU writes the target word by word, and before or after each step attends to those
vectors. ``Transformer`` (1706.03762): blocks of self-attention read the whole source at
once; the target's blocks attend to the target so far and, by cross-attention, to the source.

Both read ids and explicit positions, -1 for padding, and neither sees a loss. ``start`` reads a source;
``read`` then reads target ids, all at once in training or one by one while writing, and gives the same logits
either way.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cutaway.attention import bahdanau, bidirectional, cross, luong, mha
from cutaway.attention.common.alignment import Memory
from cutaway.attention.common.visibility import Positions
from cutaway.bounds import Bounded, Count
from cutaway.errors import UserError
from cutaway.hooks import tap
from cutaway.layers.config import MLP, Norm
from cutaway.model import block, config
from cutaway.position import sinusoidal
from cutaway.shapes import Bool, Float, Int


@dataclass(frozen=True, kw_only=True)
class Recurrent(Bounded):
    """``source`` and ``target``: vocabulary sizes; ``hidden``: the size of the decoder's state.

    Each direction of the encoder has half of it. Without ``attention`` the decoder has one vector of the
    source, as before 2014.
    """

    source: Count
    target: Count
    width: Count
    hidden: Count
    attention: bahdanau.Config | luong.Config | None = field(
        default=None, metadata={"variants": "cutaway.attention"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % 2:
            raise UserError(f"model.hidden is {self.hidden}; it must be even: each direction has half")

    def build(self) -> RecurrentSeq2Seq:
        return RecurrentSeq2Seq(self)


@dataclass(frozen=True, kw_only=True)
class Transformer(Bounded):
    """``source`` and ``target``: vocabulary sizes; encoder and decoder have ``layers`` each.

    Positions are sines and cosines, as in the paper.
    """

    source: Count
    target: Count
    width: Count
    layers: Count
    heads: Count
    mlp: MLP
    norm: Norm = Norm()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads or self.width % 2:
            raise UserError(
                f"model.width is {self.width}; it must be even and a multiple of heads ({self.heads})"
            )

    @property
    def key_size(self) -> int:
        return self.width // self.heads

    def build(self) -> TransformerSeq2Seq:
        return TransformerSeq2Seq(self)


class GRU(nn.Module):
    """A gated recurrent unit (1406.1078): a gate keeps or replaces each number of the state.

        z = sigmoid(W_z [x, h])   r = sigmoid(W_r [x, h])   n = tanh(W x + r * (U h))   h = z h + (1 - z) n

    Padding leaves the state as it is.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(width, hidden)

    def step(
        self, x: Float[Tensor, "b d"], real: Bool[Tensor, "b"], h: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b n"]:
        """The state after one word."""
        return torch.where(real[:, None], self.cell(x, h), h)

    def forward(
        self, x: Float[Tensor, "b t d"], pos: Int[Tensor, "b t"], backwards: bool = False
    ) -> Float[Tensor, "b t n"]:
        """The state after each word, reading from the first or from the last."""
        h, states = x.new_zeros(x.shape[0], self.cell.hidden_size), {}
        order = range(x.shape[1])
        for t in reversed(order) if backwards else order:
            states[t] = h = self.step(x[:, t], pos[:, t] >= 0, h)
        return torch.stack([states[t] for t in order], dim=1)


@dataclass
class RecurrentState:
    """The decoder's ``hidden`` state, its last output (``feed``), the source, and the entries so far."""

    hidden: Float[Tensor, "b n"]
    feed: Float[Tensor, "b n"]
    memory: Memory
    length: int = 0

    def snapshot(self) -> RecurrentState:
        """A copy that later words do not change: tensors are replaced, never written into."""
        return RecurrentState(self.hidden, self.feed, self.memory, self.length)


class Writer(nn.Module):
    """The recurrent decoder. Taps ``pattern`` [b t s], whose row t has the weights for word t + 1.

    Each step's own scores and pattern are tapped in ``attention``.

        Bahdanau   c = attend(h)   h = gru([y, c], h)          Luong   h = gru([y, o], h)   c = attend(h)
        o = tanh(W [h, c])         logits = W_o o

    y is the word just written. Without attention c is always the encoder's last state.
    """

    def __init__(self, config: Recurrent) -> None:
        super().__init__()
        self.attends_first = config.attention is None or config.attention.attends_first
        self.embedding = nn.Embedding(config.target, config.width)
        self.attention = (
            None if config.attention is None else config.attention.build(config.hidden, config.hidden)
        )
        self.gru = GRU(config.width + config.hidden, config.hidden)
        self.read = nn.Linear(2 * config.hidden, config.hidden)
        self.head = nn.Linear(config.hidden, config.target)

    def forward(
        self, ids: Int[Tensor, "b t"], pos: Int[Tensor, "b t"], state: RecurrentState
    ) -> Float[Tensor, "b t v"]:
        outputs, patterns = [], []
        for t, y in enumerate(self.embedding(ids).unbind(1)):
            real = pos[:, t] >= 0
            if self.attends_first:
                c, pattern = self._attend(state.hidden, state)
                state.hidden = self.gru.step(torch.cat((y, c), -1), real, state.hidden)
            else:
                state.hidden = self.gru.step(torch.cat((y, state.feed), -1), real, state.hidden)
                c, pattern = self._attend(state.hidden, state)
            o = torch.tanh(self.read(torch.cat((state.hidden, c), -1)))
            if not self.attends_first:
                state.feed = torch.where(real[:, None], o, state.feed)
            outputs.append(o)
            patterns.append(pattern)
        state.length += ids.shape[1]
        if self.attention is not None:
            tap("pattern", torch.cat(patterns, dim=1))
        return self.head(torch.stack(outputs, dim=1))

    def _attend(
        self, h: Float[Tensor, "b n"], state: RecurrentState
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b 1 s"] | None]:
        if self.attention is None:
            return state.feed, None
        c, pattern = self.attention(h[:, None], state.memory)
        return c[:, 0], pattern


class RecurrentSeq2Seq(nn.Module):
    """Taps ``memory`` [b s m] and ``logits`` [b t v], and its writer's ``pattern``."""

    def __init__(self, config: Recurrent) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.source, config.width)
        self.forwards = GRU(config.width, config.hidden // 2)
        self.backwards = GRU(config.width, config.hidden // 2)
        self.first = nn.Linear(config.hidden, config.hidden)
        self.writer = Writer(config)

    def start(self, ids: Int[Tensor, "b s"], pos: Int[Tensor, "b s"]) -> RecurrentState:
        """Read a source: the state before the target's first word."""
        x = self.embedding(ids)
        there, back = self.forwards(x, pos), self.backwards(x, pos, backwards=True)
        values = tap("memory", torch.cat((there, back), dim=-1))
        whole = torch.cat((there[:, -1], back[:, 0]), dim=-1)  # each direction after its last word
        attention: Any = self.writer.attention
        memory = Memory(values, values, pos) if attention is None else attention.remember(values, pos)
        feed = whole if attention is None else torch.zeros_like(whole)
        return RecurrentState(torch.tanh(self.first(whole)), feed, memory)

    def read(
        self, ids: Int[Tensor, "b t"], pos: Int[Tensor, "b t"], state: RecurrentState
    ) -> Float[Tensor, "b t v"]:
        """Read target words after those in the state: logits of the word after each."""
        return tap("logits", self.writer(ids, pos, state))

    def forward(
        self,
        source: Int[Tensor, "b s"],
        source_pos: Int[Tensor, "b s"],
        ids: Int[Tensor, "b t"],
        pos: Int[Tensor, "b t"],
    ) -> Float[Tensor, "b t v"]:
        """Logits of the word after each of ``ids``, all given at once (teacher forcing)."""
        return self.read(ids, pos, self.start(source, source_pos))


@dataclass
class TransformerState:
    """The source, and each layer's KV caches of the target (``own``) and of the source (``crossed``)."""

    memory: Float[Tensor, "b s d"]
    positions: Positions
    own: list[Any]
    crossed: list[Any]

    @property
    def length(self) -> int:
        return self.own[0].length if self.own else 0

    def snapshot(self) -> TransformerState:
        """A copy that later words do not change."""
        own, crossed = ([held.snapshot() for held in each] for each in (self.own, self.crossed))
        return TransformerState(self.memory, self.positions, own, crossed)


class WriterBlock(nn.Module):
    """x += attention(norm(x)); x += cross(norm(x), memory); x += mlp(norm(x)).

    Taps ``middle`` and ``out`` [b t d]: the residual stream after both attentions, and after all.
    """

    def __init__(self, own: mha.Config, other: cross.Config, given: Transformer) -> None:
        super().__init__()
        self.attention_norm = given.norm.build(given.width)
        self.attention = own.build(given.width)
        self.cross_norm = given.norm.build(given.width)
        self.cross = other.build(given.width)
        self.mlp_norm = given.norm.build(given.width)
        self.mlp = given.mlp.build(given.width)

    def forward(
        self,
        x: Float[Tensor, "b t d"],
        positions: Positions,
        memory: Float[Tensor, "b s d"],
        memory_positions: Positions,
        own: Any,
        crossed: Any,
    ) -> Float[Tensor, "b t d"]:
        x = x + self.attention(self.attention_norm(x), positions, None, False, own)
        middle = tap(
            "middle", x + self.cross(self.cross_norm(x), positions, memory, memory_positions, crossed)
        )
        return tap("out", middle + self.mlp(self.mlp_norm(middle)))


class TransformerSeq2Seq(nn.Module):
    """A pure function of its config. Taps ``memory`` [b s d], each block's values, and ``logits`` [b t v]."""

    def __init__(self, given: Transformer) -> None:
        super().__init__()
        self.config = given
        heads, size = given.heads, given.key_size
        both_ways = bidirectional.Config(heads=heads, kv_heads=heads, key_size=size)
        reading = config.Block(both_ways, given.mlp, given.norm)
        self.writing = mha.Config(heads=heads, key_size=size)
        self.crossing = cross.Config(heads=heads, kv_heads=heads, key_size=size)
        self.source = nn.Embedding(given.source, given.width)
        self.reader = nn.ModuleList(block.Block(reading, given.width) for _ in range(given.layers))
        self.reader_norm = given.norm.build(given.width)
        self.target = nn.Embedding(given.target, given.width)
        self.writer = nn.ModuleList(
            WriterBlock(self.writing, self.crossing, given) for _ in range(given.layers)
        )
        self.norm = given.norm.build(given.width)
        self.head = nn.Linear(given.width, given.target, bias=False)
        self.position = sinusoidal.Config().build(given.width)

    def _placed(self, x: Float[Tensor, "b n d"], pos: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        return x + self.position(pos).to(x.dtype)

    def encode(self, ids: Int[Tensor, "b s"], pos: Int[Tensor, "b s"]) -> Float[Tensor, "b s d"]:
        """A vector for each word of the source."""
        x = self._placed(self.source(ids), pos)
        for each in self.reader:
            x, _ = each(x, Positions(pos), None, False, None)
        return tap("memory", self.reader_norm(x))

    def start(self, ids: Int[Tensor, "b s"], pos: Int[Tensor, "b s"]) -> TransformerState:
        """Read a source: the state before the target's first word. For inference, not for training."""
        own = [self.writing.state() for _ in self.writer]
        crossed = [self.crossing.state() for _ in self.writer]
        return TransformerState(self.encode(ids, pos), Positions(pos), own, crossed)

    def read(
        self, ids: Int[Tensor, "b t"], pos: Int[Tensor, "b t"], state: TransformerState
    ) -> Float[Tensor, "b t v"]:
        """Read target words after those in the state: logits of the word after each."""
        return self._read(ids, pos, state.memory, state.positions, state.own, state.crossed)

    def forward(
        self,
        source: Int[Tensor, "b s"],
        source_pos: Int[Tensor, "b s"],
        ids: Int[Tensor, "b t"],
        pos: Int[Tensor, "b t"],
    ) -> Float[Tensor, "b t v"]:
        """Logits of the word after each of ``ids``, all given at once (teacher forcing)."""
        none: list[Any] = [None] * len(self.writer)
        return self._read(ids, pos, self.encode(source, source_pos), Positions(source_pos), none, none)

    def _read(
        self,
        ids: Tensor,
        pos: Tensor,
        memory: Tensor,
        memory_positions: Positions,
        own: list[Any],
        crossed: list[Any],
    ) -> Float[Tensor, "b t v"]:
        x = self._placed(self.target(ids), pos)
        for i, each in enumerate(self.writer):
            x = each(x, Positions(pos), memory, memory_positions, own[i], crossed[i])
        return tap("logits", self.head(self.norm(x)))
