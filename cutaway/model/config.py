"""A model's config: frozen dataclasses of a decoder, an encoder, or both. Imports no torch.

Layers are a tuple of blocks (block_config.py), so a hybrid stack (five local, one global) is data too.
``weights()`` gives the shape of each weight before anything is allocated.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cutaway.bounds import Bounded, Count, Natural, Positive
from cutaway.embedding.tables import hashed, lowrank
from cutaway.errors import UserError
from cutaway.layers.config import MLP, MoE, Norm, PerLayer
from cutaway.model.block_config import SHARING, Block, Shared
from cutaway.model.kinds import kind_of
from cutaway.position import learned, sinusoidal

MTP_NORMS = ("embedding_norm", "hidden_norm", "norm")  # of a head that predicts further tokens


def _lends(there: Shared, here: Shared | None) -> bool:
    """Whether a transformer's weights are those of another that reads them."""
    return here is not None and there == replace(here, source=None)


@dataclass(frozen=True)
class Decoder(Bounded):
    """A stack of blocks between an embedding table and a head that scores every token of the vocabulary.

    ``vocab`` is 0 where a run takes it from its tokenizer; ``context``: the most positions; ``tied``: the
    head is the embedding table; ``embedding_scale`` multiplies embeddings (Gemma); ``position`` adds learned
    positions (GPT-2) or sinusoids; ``embedding_norm`` norms what blocks read (BLOOM); ``softcap`` bounds
    logits to c tanh(logit / c) (Gemma 2), after ``logit_scale`` multiplied them (Cohere); ``head_bias`` is
    added to an untied head's (Phi), ``logits_bias`` to the logits of any (BART); ``table``: another form of
    the embedding than one matrix (``cutaway/embedding/tables``); ``per_layer`` gives each block an embedding
    of its own (Gemma 4); ``streams``: how many residual streams its blocks have, where not one (Gemma 3n);
    with ``one_relative`` all blocks have the first one's table of relative positions (T5); without
    ``last_norm`` the head reads what the last block outputs (BART). With ``norm_then_position`` embeddings
    are normed before their positions are added (BlenderBot). ``mtp``: the block of each head that predicts
    one token more (model/mtp.py, DeepSeek-V3); where they are not ``mtp_chained``, all of them read the
    model's hidden states (MiMo).
    """

    vocab: Natural
    width: Count
    context: Count
    blocks: tuple[Block, ...]
    norm: Norm = Norm()
    tied: bool = True
    embedding_scale: Positive = 1.0
    position: learned.Config | sinusoidal.Config | None = field(
        default=None, metadata={"variants": "cutaway.position"}
    )
    softcap: Positive | None = None
    logit_scale: Positive = 1.0
    embedding_norm: Norm | None = None
    head_bias: bool = False
    table: lowrank.Config | hashed.Config | None = field(
        default=None, metadata={"variants": "cutaway.embedding.tables"}
    )
    per_layer: PerLayer | None = None
    streams: Count | None = None
    logits_bias: bool = False
    one_relative: bool = False
    last_norm: bool = True
    norm_then_position: bool = False
    mtp: tuple[Block, ...] = ()
    mtp_chained: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_relative(self.blocks, self.one_relative)
        if self.norm_then_position and not (self.embedding_norm and self.position):
            raise UserError("model: norm_then_position needs embedding_norm and position")
        if self.head_bias and self.tied:
            raise UserError("model: head_bias needs a head of its own: set tied to false")
        if any(block.per_layer != (self.per_layer and self.per_layer.size) for block in self.blocks):
            raise UserError("model: per_layer of each block must be the model's per_layer.size")
        for n, block in enumerate(self.blocks):
            source = block.shared and block.shared.source
            there = None if source is None or source >= n else self.blocks[source].shared
            if source is not None and (there is None or not _lends(there, block.shared)):
                raise UserError(
                    f"model: block {n} shares the transformer of block {source}, which must be an earlier "
                    "one with weights of its own and the same sizes"
                )
        if any(block.streams != self.streams for block in self.blocks):
            raise UserError("model: streams of each block must be the model's")
        if self.mtp and (self.streams or self.per_layer or self.table or not self.last_norm):
            raise UserError("model: mtp needs one residual stream, one table of embeddings and last_norm")
        for block in self.mtp:
            own = (getattr(block.attention, name, None) is None for name in ("kv_layer", "index_layer"))
            if block.cross or block.shared or block.beside or not all(own):
                raise UserError("model: a block of mtp reads its own text by one mixer of its own")
        for n, block in enumerate(self.blocks):
            self._check_shared(n, block.attention)
        for block in (*self.blocks, *self.mtp):
            beside = "past" if block.beside is None else block.beside.mixer.reads
            if not block.attention.reads == beside == "past":
                raise UserError(
                    f"model: a decoder cannot have {kind_of(block.attention)} attention: it reads later "
                    "tokens"
                )

    def _check_shared(self, n: int, of: Any) -> None:
        """UserError unless the layer whose keys and values layer n reads is before it, and of its kind."""
        chooser = getattr(of, "index_layer", None)
        if chooser is not None:
            there = self.blocks[chooser].attention if chooser < n else None
            own = kind_of(there) == kind_of(of) and getattr(there, "index_layer", None) is None
            if there is None or not own or there.top_k != of.top_k:
                raise UserError(
                    f"model: block {n} reads the choice of block {chooser}, which must be an earlier one "
                    "with an indexer that chooses as many keys"
                )
        source = getattr(of, "kv_layer", None)
        if source is None:
            return
        there: Any = self.blocks[source].attention if source < n else None
        if (
            kind_of(of) not in SHARING
            or type(there) is not type(of)
            or there.kv_layer is not None
            or (there.groups, there.key_size, there.values) != (of.groups, of.key_size, of.values)
            or there.position != of.position
            or (of.position is not None and of.position.grows)
        ):
            raise UserError(
                f"model: block {n} reads the keys and values of block {source}, which must be an earlier one "
                f"of the same kind ({', '.join(SHARING)}), sizes and positions, with keys of its own"
            )

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one more token over all layers, for numbers of ``entry`` bytes."""
        return sum(block.bytes_per_token(entry) for block in self.blocks)

    def state_bytes(self, entry: int) -> int:
        """Bytes of the recurrent states of one sequence over all layers, for numbers of ``entry`` bytes."""
        mixers = [mixer for block in self.blocks for mixer in block.own_mixers]
        return sum(mixer.state_bytes(entry) for mixer in mixers if hasattr(mixer, "state_bytes"))

    def weights(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name, known before anything is allocated."""
        plain = {"weight": (self.vocab, self.width)}
        rows = plain if self.table is None else self.table.weights(self.vocab, self.width)
        out = {f"embedding.{name}": shape for name, shape in rows.items()}
        if self.position is not None:
            out |= {f"position.{name}": shape for name, shape in self.position.weights(self.width).items()}
        out |= _of_blocks(self.blocks, self.width, self.one_relative)
        if self.last_norm:
            out |= {f"norm.{name}": shape for name, shape in self.norm.weights(self.width).items()}
        if self.embedding_norm is not None:
            own = self.embedding_norm.weights(self.width)
            out |= {f"embedding_norm.{name}": shape for name, shape in own.items()}
        if self.per_layer is not None:
            own = self.per_layer.weights(len(self.blocks), self.width)
            out |= {f"per_layer.{name}": shape for name, shape in own.items()}
        for name in ("expand", "merge"):
            made = range((self.streams or 1) - 1)
            out |= {f"streams.{name}.{n}.weight": (self.width, self.width) for n in made}
        for n, block in enumerate(self.mtp):
            norms, path = self.norm.weights(self.width), f"mtp.{n}"
            out |= {f"{path}.{name}.{part}": s for name in MTP_NORMS for part, s in norms.items()}
            out[f"{path}.join.weight"] = (self.width, 2 * self.width)
            out |= {f"{path}.block.{name}": shape for name, shape in block.weights(self.width).items()}
        if self.logits_bias:
            out["logits_bias"] = (self.vocab,)
        if self.head_bias:
            out["head.bias"] = (self.vocab,)
        return out if self.tied else out | {"head.weight": (self.vocab, self.width)}

    def active(self) -> dict[str, tuple[int, ...]]:
        """The weights that one token passes: of a layer's equal experts, the first ``top_k``."""
        idle = tuple(
            f"blocks.{n}.mlp.experts.{e}."
            for n, block in enumerate(self.blocks)
            if isinstance(block.mlp, MoE)
            for e in range(block.mlp.top_k, block.mlp.experts)
        )
        return {name: shape for name, shape in self.weights().items() if not name.startswith(idle)}


@dataclass(frozen=True)
class Convolution(Bounded):
    """A convolution of embeddings, which is added to the first layer's output (DeBERTa-v2); it has ``reach``
    tokens to either side.
    """

    reach: Natural
    activation: Literal["tanh", "gelu", "relu"] = "tanh"

    @property
    def kernel(self) -> int:
        """How many embeddings it reads for one."""
        return 2 * self.reach + 1

    def weights(self, width: int, norm: Norm) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        own = {"conv.weight": (width, width, self.kernel), "conv.bias": (width,)}
        return own | {f"norm.{name}": shape for name, shape in norm.weights(width).items()}


@dataclass(frozen=True)
class Encoder(Bounded):
    """A stack of blocks that reads a whole text, both sides, and gives a vector for each token (1810.04805).

    Each norm follows a sum, x = norm(x + attention(x)); the first follows the sum of the embeddings of the
    token, of its position (``context`` of them), and of its part of the text (``segments`` of them, or none).
    Without ``learned`` positions are the blocks' own, or ``sines``; ``offset`` is the number of the first
    (RoBERTa). With ``norm_first`` blocks are a decoder's, and a norm follows the last (ModernBERT);
    ``embedding_norm`` says whether there is one before the first, ``embedding_scale`` multiplies embeddings;
    with ``one_relative`` all blocks have the first one's table of relative positions (T5). Where embeddings
    have an ``embedding_width`` of their own, a matrix takes them to ``width`` (ALBERT, 1909.11942). ``order``
    lists the blocks that are run, by their numbers, where some are run several times (ALBERT). The embedding
    of the id ``mask`` is zero, and others grow by as much as is missing (ESM). The first row of a table of
    ``tasks`` is added to each embedding (ERNIE). ``convolution`` is one beside the first layer (DeBERTa-v2).
    """

    vocab: Count
    width: Count
    context: Count
    blocks: tuple[Block, ...]
    norm: Norm = Norm("layer", 1e-12)
    segments: Natural = 2
    learned: bool = True
    offset: Natural = 0
    norm_first: bool = False
    embedding_norm: bool = True
    embedding_scale: Positive = 1.0
    sines: sinusoidal.Config | None = field(default=None, metadata={"variants": "cutaway.position"})
    one_relative: bool = False
    embedding_width: Count | None = None
    order: tuple[Natural, ...] = ()
    mask: Natural | None = None
    tasks: Natural = 0
    convolution: Convolution | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_relative(self.blocks, self.one_relative)
        if self.order and set(self.order) != set(range(len(self.blocks))):
            raise UserError(f"model: order must have each of the {len(self.blocks)} blocks, by its number")
        if self.learned and self.sines:
            raise UserError("model: an encoder's positions are learned or sines: set one of them")
        for block in self.blocks:
            odd = block.post_norm or block.parallel or block.residual != 1 or block.beside or block.per_layer
            odd = odd or block.cross
            if block.attention.reads != "all" or (odd and not self.norm_first):
                raise UserError(
                    f"model: an encoder needs attention that reads both sides and no post_norm, not "
                    f"{kind_of(block.attention)}"
                )
            if not isinstance(block.mlp, MLP):
                raise UserError(f"model: an encoder needs dense MLPs, not {kind_of(block.mlp)}")

    @property
    def layers(self) -> tuple[int, ...]:
        """The number of the block of each layer."""
        return self.order or tuple(range(len(self.blocks)))

    @property
    def position(self) -> learned.Config | sinusoidal.Config | None:
        """What is added to embeddings for their positions: learned vectors, sines, or nothing."""
        return learned.Config(self.context, self.offset) if self.learned else self.sines

    def weights(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name, known before anything is allocated."""
        own = self.embedding_width or self.width
        out: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocab, own)}
        if self.segments:
            out["segment.weight"] = (self.segments, own)
        if self.tasks:
            out["task.weight"] = (self.tasks, own)
        if self.position is not None:
            out |= {f"position.{name}": shape for name, shape in self.position.weights(own).items()}
        norms = (("norm", self.embedding_norm, own), ("last_norm", self.norm_first, self.width))
        for name, there, width in norms:
            out |= {f"{name}.{p}": shape for p, shape in self.norm.weights(width).items()} if there else {}
        if self.embedding_width is not None:
            out |= {"projection.weight": (self.width, own), "projection.bias": (self.width,)}
        if self.convolution is not None:
            own_shapes = self.convolution.weights(self.width, self.norm)
            out |= {f"convolution.{name}": shape for name, shape in own_shapes.items()}
        return out | _of_blocks(self.blocks, self.width, self.one_relative)


@dataclass(frozen=True)
class EncoderDecoder(Bounded):
    """An encoder that reads a source, and a decoder whose blocks read its output by ``cross`` (1706.03762).

    With ``shared`` both have one embedding table.
    """

    encoder: Encoder
    decoder: Decoder
    shared: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one, two = self.encoder, self.decoder
        if not all(block.cross for block in two.blocks):
            raise UserError("model: each block of an encoder-decoder's decoder needs cross")
        widths = {block.cross.memory_width or two.width for block in two.blocks}
        if widths - {one.width}:
            raise UserError(
                f"model: the decoder reads a memory of width {widths.pop()}, and it is {one.width}"
            )
        if self.shared and ((one.vocab, one.width) != (two.vocab, two.width) or two.table):
            raise UserError("model: shared embeddings need one vocabulary, one width and one matrix")

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All layers, the encoder's first."""
        return self.encoder.blocks + self.decoder.blocks

    @property
    def vocab(self) -> int:
        """How many tokens the target has."""
        return self.decoder.vocab

    @property
    def width(self) -> int:
        return self.decoder.width

    @property
    def context(self) -> int:
        """The most tokens of a target."""
        return self.decoder.context

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one more token of the target, for numbers of ``entry`` bytes."""
        return self.decoder.bytes_per_token(entry)

    def bytes_per_source_token(self, entry: int) -> int:
        """Bytes of one more token of the source: its keys and values in each layer of the decoder."""
        return sum(block.cross.bytes_per_token(entry) for block in self.decoder.blocks)

    def weights(self) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        halves = {"encoder": self.encoder.weights(), "decoder": self.decoder.weights()}
        out = {f"{half}.{name}": shape for half, own in halves.items() for name, shape in own.items()}
        if not self.shared:
            return out
        table = {"embedding.weight": out.pop("encoder.embedding.weight")}
        del out["decoder.embedding.weight"]
        return table | out


Model = Decoder | Encoder | EncoderDecoder


def _of_blocks(blocks: tuple[Block, ...], width: int, one_relative: bool) -> dict[str, tuple[int, ...]]:
    """The weights of all blocks; tables of relative positions are the first block's if there is one."""
    return {
        f"blocks.{n}.{name}": shape
        for n, block in enumerate(blocks)
        for name, shape in block.weights(width).items()
        if not (one_relative and n and name.startswith("attention.relative."))
    }


def _check_relative(blocks: tuple[Block, ...], one_relative: bool) -> None:
    """UserError if one table of relative positions cannot be that of all blocks."""
    if one_relative:
        tables = {
            (getattr(one.attention, "relative", None), getattr(one.attention, "heads", 0)) for one in blocks
        }
        if len(tables) != 1 or tables.pop()[0] is None:
            raise UserError("model: one_relative needs the same relative positions in every block")
