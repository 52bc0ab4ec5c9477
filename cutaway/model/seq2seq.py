"""Encoder-decoders, one text in and another out: the recurrent translator of 2014, and a transformer.

    memory = encode(source)                     once
    logits = decode(target so far, memory)      what the next word may be

``Recurrent`` (1406.1078, 1409.0473, 1508.04025): a GRU reads the source in both directions and outputs a
vector a word; a second GRU writes the target word by word, and before or after each step attends to those
vectors. ``EncoderDecoder`` (1706.03762), T5, BART and Marian: blocks of self-attention read the whole source
at once; the target's blocks attend to the target so far and, by cross-attention, to the source.

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
from cutaway.model import decoder, encoder
from cutaway.model.block import Source
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder, EncoderDecoder
from cutaway.model.decoder import State
from cutaway.position import sinusoidal
from cutaway.shapes import Bool, Float, Int

CONTEXT = 4096  # positions of a `transformer`, whose sines have no end


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


def transformer(
    *, source: int, target: int, width: int, layers: int, heads: int, mlp: MLP, norm: Norm | None = None
) -> EncoderDecoder:
    """The paper's model (1706.03762): ``layers`` blocks that read, and as many that write.

    ``source`` and ``target``: vocabulary sizes. Positions are sines and cosines; norms come first, as in most
    models since. UserError for a width that the heads cannot share.
    """
    if heads < 1 or width % heads or width % 2:
        raise UserError(
            f"model.width is {width} and heads is {heads}: width must be even and a multiple of heads, which "
            "are 1 or more"
        )
    norm = Norm() if norm is None else norm
    sizes: dict[str, Any] = {"heads": heads, "key_size": width // heads}
    both_ways = bidirectional.Config(**sizes, kv_heads=heads)
    reading = Block(both_ways, mlp, norm)
    writing = Block(mha.Config(**sizes), mlp, norm, cross=cross.Config(**sizes, kv_heads=heads))
    sines = sinusoidal.Config()
    plain: dict[str, Any] = {"segments": 0, "learned": False, "norm_first": True, "embedding_norm": False}
    reader = Encoder(source, width, CONTEXT, (reading,) * layers, norm, sines=sines, **plain)
    writer = Decoder(target, width, CONTEXT, (writing,) * layers, norm, tied=False, position=sines)
    return EncoderDecoder(reader, writer)


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
    """The source, and the decoder's state: in each layer KV caches of the target and of the source."""

    source: Source
    decoder: State

    @property
    def length(self) -> int:
        return self.decoder.length

    def truncate(self, length: int) -> None:
        """Drop everything after the first ``length`` words of the target."""
        self.decoder.truncate(length)

    def snapshot(self) -> TransformerState:
        """A copy that later words do not change."""
        return TransformerState(self.source, self.decoder.snapshot())


class TransformerSeq2Seq(nn.Module):
    """A pure function of its config. Taps ``memory`` [b s d], each half's values, and ``logits`` [b t v]."""

    def __init__(self, config: EncoderDecoder) -> None:
        super().__init__()
        self.config = config
        reader, writer = encoder.Encoder(config.encoder), decoder.Decoder(config.decoder)
        if config.shared:
            self.embedding = reader.embedding = writer.embedding
        self.encoder, self.decoder = reader, writer

    def encode(self, ids: Int[Tensor, "b s"], pos: Int[Tensor, "b s"]) -> Float[Tensor, "b s d"]:
        """A vector for each word of the source."""
        return tap("memory", self.encoder(ids, pos))

    def memory(self, ids: Int[Tensor, "b s"], pos: Int[Tensor, "b s"]) -> Source:
        """What the decoder's cross-attention reads of a source."""
        return Source(self.encode(ids, pos), Positions(pos))

    def start(self, ids: Int[Tensor, "b s"], pos: Int[Tensor, "b s"]) -> TransformerState:
        """Read a source: the state before the target's first word. For inference, not for training."""
        return TransformerState(self.memory(ids, pos), self.decoder.new_state())

    def read(
        self, ids: Int[Tensor, "b t"], pos: Int[Tensor, "b t"], state: TransformerState
    ) -> Float[Tensor, "b t v"]:
        """Read target words after those in the state: logits of the word after each."""
        return tap("logits", self.decoder(ids, pos, state.decoder, source=state.source))

    def forward(
        self,
        source: Int[Tensor, "b s"],
        source_pos: Int[Tensor, "b s"],
        ids: Int[Tensor, "b t"],
        pos: Int[Tensor, "b t"],
    ) -> Float[Tensor, "b t v"]:
        """Logits of the word after each of ``ids``, all given at once (teacher forcing)."""
        return tap("logits", self.decoder(ids, pos, source=self.memory(source, source_pos)))
