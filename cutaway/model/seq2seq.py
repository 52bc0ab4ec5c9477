"""Encoder-decoders: one text in, another out. The translator of 2014 out of gated recurrent units, and a transformer.

    memory = encode(source)                     once
    logits = decode(target so far, memory)      what the next word may be

``Recurrent`` (1406.1078, 1409.0473, 1508.04025): a GRU reads the source in both directions and leaves a vector a word; a
second GRU writes the target word by word, and before or after each step looks at those vectors through its attention.
``Transformer`` (1706.03762): blocks of self-attention read the source all at once; the target's blocks look back at
themselves and, by cross-attention, at the source.

Both read ids and explicit positions, -1 for padding, and neither sees a loss. ``start`` reads a source; ``read`` then
reads target ids, all at once in training or one by one while writing, and gives the same logits either way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cutaway.attention import bahdanau, luong
from cutaway.attention.parts.alignment import Memory
from cutaway.errors import Refused
from cutaway.shapes import Bool, Float, Int
from cutaway.trace import tap


@dataclass(frozen=True, kw_only=True)
class Recurrent:
    """``source`` and ``target`` are vocabularies; ``hidden`` the size of the decoder's state, half of it a direction in
    the encoder. Without ``attention`` all the decoder has of the source is one vector, as before 2014.
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
            raise Refused(f"seq2seq: a hidden size of {self.hidden} cannot be split between two directions")

    def build(self) -> RecurrentSeq2Seq:
        return RecurrentSeq2Seq(self)


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
    """What the writer holds: its ``hidden`` state, what it last read (``feed``), and the source. ``length`` counts entries."""

    hidden: Float[Tensor, "b n"]
    feed: Float[Tensor, "b n"]
    memory: Memory
    length: int = 0

    def snapshot(self) -> RecurrentState:
        """A copy that later reading does not touch: reading replaces tensors, it never changes them."""
        return RecurrentState(self.hidden, self.feed, self.memory, self.length)


class Writer(nn.Module):
    """The recurrent decoder. Taps ``pattern`` [b t s], whose row t is where it looked for word t + 1; each step's own
    scores and pattern are tapped in ``attention``.

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
    """A pure function of its config. Taps ``memory`` [b s m] and ``logits`` [b t v], and its writer's ``pattern``."""

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
        attention = self.writer.attention
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
