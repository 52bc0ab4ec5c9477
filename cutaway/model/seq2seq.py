"""Encoder-decoders, one text in and another out: the recurrent translator of 2014, and a transformer.

    memory = encode(source)                     once
    logits = decode(target so far, memory)      what the next word may be

``Recurrent`` (1406.1078, 1409.0473, 1508.04025): a GRU reads the source in both directions and leaves a
vector a word; a second GRU writes the target word by word, and before or after each step looks at those
vectors through its attention. ``Transformer`` (1706.03762): blocks of self-attention read the source all at
once; the target's blocks look back at themselves and, by cross-attention, at the source.

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
from cutaway.attention.parts.alignment import Memory
from cutaway.attention.parts.visibility import Places
from cutaway.errors import UserError
from cutaway.hooks import tap
from cutaway.layers.config import MLP, Norm
from cutaway.model import block, config
from cutaway.position import sinusoidal
from cutaway.shapes import Bool, Float, Int


@dataclass(frozen=True, kw_only=True)
class Recurrent:
    """``source`` and ``target`` are vocabularies; ``hidden`` the size of the decoder's state, half of it a
    direction in the encoder. Without ``attention`` all the decoder has of the source is one vector, as before
    2014.
    """

    source: int
    target: int
    width: int
    hidden: int
    attention: bahdanau.Config | luong.Config | None = field(
        default=None, metadata={"variants": "cutaway.attention"}
    )

    def __post_init__(self) -> None:
        if self.hidden < 2 or self.hidden % 2:
            raise UserError(f"seq2seq: a hidden size of {self.hidden} cannot be split between two directions")

    def build(self) -> RecurrentSeq2Seq:
        return RecurrentSeq2Seq(self)


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """``source`` and ``target`` are vocabularies; as many ``layers`` read as write. ``width`` is even
    and cut into ``heads``; positions are sines and cosines, as in the paper.
    """

    source: int
    target: int
    width: int
    layers: int
    heads: int
    mlp: MLP
    norm: Norm = Norm()

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads or self.width % 2:
            raise UserError(
                f"seq2seq: a width of {self.width} must be even and cut into {self.heads} heads evenly"
            )

    @property
    def key_size(self) -> int:
        return self.width // self.heads

    def build(self) -> TransformerSeq2Seq:
        return TransformerSeq2Seq(self)


class GRU(nn.Module):
    """A gated recurrent unit (1406.1078): each number of the state is kept or replaced as its gate says.

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
    """What the writer holds: its ``hidden`` state, what it last read (``feed``), and the source. ``length``
    counts entries.
    """

    hidden: Float[Tensor, "b n"]
    feed: Float[Tensor, "b n"]
    memory: Memory
    length: int = 0

    def snapshot(self) -> RecurrentState:
        """A copy that later reading does not touch: reading replaces tensors, it never changes them."""
        return RecurrentState(self.hidden, self.feed, self.memory, self.length)


class Writer(nn.Module):
    """The recurrent decoder. Taps ``pattern`` [b t s], whose row t is where it looked for word t + 1; each
    step's own scores and pattern are tapped in ``attention``.

        Bahdanau   c = look(h)   h = gru([y, c], h)          Luong   h = gru([y, o], h)   c = look(h)
        o = tanh(W [h, c])       logits = W_o o

    y is the word just written. Without attention c is the encoder's last state, always.
    """

    def __init__(self, config: Recurrent) -> None:
        super().__init__()
        self.looks_first = config.attention is None or config.attention.looks_first
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
        said, patterns = [], []
        for t, y in enumerate(self.embedding(ids).unbind(1)):
            real = pos[:, t] >= 0
            if self.looks_first:
                c, pattern = self._look(state.hidden, state)
                state.hidden = self.gru.step(torch.cat((y, c), -1), real, state.hidden)
            else:
                state.hidden = self.gru.step(torch.cat((y, state.feed), -1), real, state.hidden)
                c, pattern = self._look(state.hidden, state)
            o = torch.tanh(self.read(torch.cat((state.hidden, c), -1)))
            if not self.looks_first:
                state.feed = torch.where(real[:, None], o, state.feed)
            said.append(o)
            patterns.append(pattern)
        state.length += ids.shape[1]
        if self.attention is not None:
            tap("pattern", torch.cat(patterns, dim=1))
        return self.head(torch.stack(said, dim=1))

    def _look(
        self, h: Float[Tensor, "b n"], state: RecurrentState
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b 1 s"] | None]:
        if self.attention is None:
            return state.feed, None
        c, pattern = self.attention(h[:, None], state.memory)
        return c[:, 0], pattern


class RecurrentSeq2Seq(nn.Module):
    """A pure function of its config. Taps ``memory`` [b s m] and ``logits`` [b t v], and its writer's
    ``pattern``.
    """

    def __init__(self, config: Recurrent) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.source, config.width)
        self.forwards = GRU(config.width, config.hidden // 2)
        self.backwards = GRU(config.width, config.hidden // 2)
        self.first = nn.Linear(config.hidden, config.hidden)
        self.writer = Writer(config)

    def start(self, ids: Int[Tensor, "b s"], pos: Int[Tensor, "b s"]) -> RecurrentState:
        """Reads a source; what comes back is ready to read the target's first word."""
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
        """Reads target words after those that the state has read: logits of the word after each."""
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
    """What the writer holds: the source, and what each layer remembers of the target and of the source."""

    memory: Float[Tensor, "b s d"]
    places: Places
    own: list[Any]
    crossed: list[Any]

    @property
    def length(self) -> int:
        return self.own[0].length if self.own else 0

    def snapshot(self) -> TransformerState:
        """A copy that later reading does not touch."""
        own, crossed = ([held.snapshot() for held in each] for each in (self.own, self.crossed))
        return TransformerState(self.memory, self.places, own, crossed)


class WriterBlock(nn.Module):
    """x += attention(norm(x)); x += cross(norm(x), memory); x += mlp(norm(x)). Taps ``middle`` and ``out`` [b
    t d]: the residual stream after both attentions, and after all.
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
        places: Places,
        memory: Float[Tensor, "b s d"],
        memory_places: Places,
        own: Any,
        crossed: Any,
    ) -> Float[Tensor, "b t d"]:
        x = x + self.attention(self.attention_norm(x), places, None, False, own)
        middle = tap("middle", x + self.cross(self.cross_norm(x), places, memory, memory_places, crossed))
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
            x, _ = each(x, Places(pos), None, False, None)
        return tap("memory", self.reader_norm(x))

    def start(self, ids: Int[Tensor, "b s"], pos: Int[Tensor, "b s"]) -> TransformerState:
        """Reads a source; what comes back is ready to read the target's first word. For writing, not for
        training.
        """
        own = [self.writing.state() for _ in self.writer]
        crossed = [self.crossing.state() for _ in self.writer]
        return TransformerState(self.encode(ids, pos), Places(pos), own, crossed)

    def read(
        self, ids: Int[Tensor, "b t"], pos: Int[Tensor, "b t"], state: TransformerState
    ) -> Float[Tensor, "b t v"]:
        """Reads target words after those that the state has read: logits of the word after each."""
        return self._read(ids, pos, state.memory, state.places, state.own, state.crossed)

    def forward(
        self,
        source: Int[Tensor, "b s"],
        source_pos: Int[Tensor, "b s"],
        ids: Int[Tensor, "b t"],
        pos: Int[Tensor, "b t"],
    ) -> Float[Tensor, "b t v"]:
        """Logits of the word after each of ``ids``, all given at once (teacher forcing)."""
        none: list[Any] = [None] * len(self.writer)
        return self._read(ids, pos, self.encode(source, source_pos), Places(source_pos), none, none)

    def _read(
        self,
        ids: Tensor,
        pos: Tensor,
        memory: Tensor,
        memory_places: Places,
        own: list[Any],
        crossed: list[Any],
    ) -> Float[Tensor, "b t v"]:
        x = self._placed(self.target(ids), pos)
        for i, each in enumerate(self.writer):
            x = each(x, Places(pos), memory, memory_places, own[i], crossed[i])
        return tap("logits", self.head(self.norm(x)))
