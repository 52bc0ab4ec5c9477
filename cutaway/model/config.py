"""A model's config: frozen dataclasses that go to YAML or JSON and come back equal. Imports no torch.

Layers are a tuple of blocks, so a hybrid stack (five local, one global) is data too. In a file, ``kind``
names the variant of a part, which is the name of its file: ``attention: {kind: gqa, heads: 9, ...}``. Equal
neighbouring blocks are written once, with their number: ``{times: 30, attention: ..., mlp: ...}``. An MLP is
dense unless it says ``kind: moe``.
"""

from __future__ import annotations

import importlib
import pkgutil
import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache
from itertools import groupby
from typing import Any, Literal

from cutaway.attention.common.mixer import LayerState, Mixer, Shapes, linear, under
from cutaway.bounds import UNIONS, Bounded, Count, Natural, Positive, bounds_of, check, is_finite
from cutaway.embedding.tables import hashed, lowrank
from cutaway.errors import UserError, escaped, quoted
from cutaway.layers.config import MLP, Activation, MoE, Norm, PerLayer
from cutaway.position import learned, sinusoidal

SHARING = ("mha", "gqa", "mqa", "local")  # attention that may read the keys and values of an earlier layer


@dataclass(frozen=True)
class Beside(Bounded):
    """A second mixer of a block (Falcon-H1).

    Both read the normed x, times the two numbers of ``inputs``, the attention's first; their outputs, times
    those of ``outputs``, are added.
    """

    mixer: Any = field(metadata={"variants": "cutaway.attention"})
    inputs: tuple[Positive, ...] = (1.0, 1.0)
    outputs: tuple[Positive, ...] = (1.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.inputs) != 2 or len(self.outputs) != 2:
            raise UserError("model: beside.inputs and beside.outputs are two numbers each")
        if not isinstance(self.mixer, Mixer) or self.mixer.position is not None:
            raise UserError("model: beside.mixer must be a mechanism without positions")


@dataclass(frozen=True)
class Shared(Bounded):
    """A transformer before a block's mixer, whose weights several blocks share (model/shared.py).

    ``attention`` reads vectors of twice the width; ``hidden`` neurons are its gated MLP's. ``source`` is the
    number of the block whose weights it reads, None where they are its own. ``rank``: of this block's own
    matrix beside those of gate and up, ``attention_rank`` beside query, key and value.
    """

    attention: Any = field(metadata={"variants": "cutaway.attention"})
    hidden: Count
    activation: Activation = "gelu"
    norm: Norm = Norm()
    rank: Count | None = None
    attention_rank: Count | None = None
    source: Natural | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if kind_of(self.attention) not in SHARING or self.attention.kv_layer is not None:
            raise UserError(f"model: shared.attention should be {', '.join(SHARING)}, with keys of its own")
        if self.attention.bias or self.attention.out_bias or self.activation == "xielu":
            raise UserError("model: shared has no biases and no learned activation")

    def build(self, width: int) -> Any:
        from cutaway.model.shared import SharedTransformer

        return SharedTransformer(self, width)

    def weights(self, width: int) -> Shapes:
        """The shape of each weight by its name: of blocks that borrow, their low-rank matrices and W_out."""
        of, matrices = self.attention, ("query.weight", "key.weight", "value.weight", "out.weight")
        attention = {name: shape for name, shape in of.weights(2 * width).items() if name not in matrices}
        shapes = under("attention", attention) | linear("out", width, width)
        values = of.heads * of.values
        projections = [
            ("attention.query", of.heads * of.key_size, 2 * width, self.attention_rank),
            ("attention.key", of.groups * of.key_size, 2 * width, self.attention_rank),
            ("attention.value", of.groups * of.values, 2 * width, self.attention_rank),
            ("attention.out", width, values, None),
            ("gate_up", 2 * self.hidden, width, self.rank),
            ("down", width, self.hidden, None),
        ]
        for name, rows, columns, rank in projections:
            if self.source is None:
                shapes |= linear(f"{name}.shared", rows, columns)
            if rank is not None:
                shapes |= linear(f"{name}.down", rank, columns) | linear(f"{name}.up", rows, rank)
        if self.source is None:
            shapes |= under("attention_norm", self.norm.weights(2 * width))
            shapes |= under("mlp_norm", self.norm.weights(width))
        return shapes


@dataclass(frozen=True)
class Block(Bounded):
    """One layer: x += attention(norm(x)), then x += mlp(norm(x)).

    ``post_norm`` also norms the outputs of attention and MLP before they are added (Gemma's sandwich);
    without ``pre_norm`` it alone does (OLMo 2). In ``parallel`` the MLP too reads the block's x: through the
    norm of attention ("shared", Cohere), or its own ("own", GPT-NeoX). ``residual`` multiplies what both add
    (Granite). With ``per_layer`` numbers of each token's own for this block, the block adds them at its end
    (layers/per_layer.py), and where it is ``scaled``, one learned number multiplies its output (Gemma 4).
    With ``streams`` it computes the first of so many residual streams and corrects the others, and with a
    ``laurel`` a matrix of this rank is beside attention (Gemma 3n, layers/altup.py).
    With ``shared`` its mixer also reads what a transformer makes of x, which several blocks share (Zamba 2).
    Without ``mlp`` it is the first half alone (Mamba 2); ``beside`` is a second mixer in that half. Without
    ``attention_normed`` attention reads x as it is. ``cross`` reads an encoder's memory between the two
    halves (1706.03762); there ``pre_norm`` false means that each norm follows a sum: x = norm(x + ...).
    """

    attention: Any = field(metadata={"variants": "cutaway.attention"})
    mlp: MLP | MoE | None
    norm: Norm = Norm()
    post_norm: bool = False
    pre_norm: bool = True
    parallel: Literal["shared", "own"] | None = None
    residual: Positive = 1.0
    per_layer: Count | None = None
    scaled: bool = False
    beside: Beside | None = None
    shared: Shared | None = None
    streams: Count | None = None
    laurel: Count | None = None
    attention_normed: bool = True
    cross: Any = field(default=None, metadata={"variants": "cutaway.attention"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cross is not None:
            self._check_cross()
        elif not (self.pre_norm or self.post_norm) or (self.parallel and not self.pre_norm):
            raise UserError("model: a block without pre_norm needs post_norm, and cannot be parallel")
        if self.mlp is None and (self.parallel or self.per_layer):
            raise UserError("model: a block without mlp cannot be parallel, nor have per_layer")
        if self.shared and (self.attention.position is not None or self.beside or self.mlp):
            raise UserError("model: a block with shared has a mixer without positions alone")
        if self.streams and (not self.per_layer or self.parallel or self.scaled):
            raise UserError("model: streams need per_layer, and a block that is neither parallel nor scaled")
        if self.laurel and not (self.pre_norm and self.attention_normed):
            raise UserError("model: laurel reads what attention does, through a norm: set pre_norm")
        if not isinstance(self.attention, Mixer) or self.attention.reads == "memory":
            raise UserError(
                f"model: a block cannot have {kind_of(self.attention)} attention: it reads an encoder's "
                "memory"
            )

    def _check_cross(self) -> None:
        """UserError for what a block that reads a memory does not have."""
        if not isinstance(self.cross, Mixer) or self.cross.reads != "memory":
            raise UserError(
                f"model: cross is {kind_of(self.cross)} attention, which reads no memory: use kind cross"
            )
        odd = self.parallel or self.residual != 1 or self.beside or self.per_layer
        odd = odd or (self.post_norm and not self.pre_norm)
        if odd or self.scaled or not self.attention_normed or not isinstance(self.mlp, MLP):
            raise UserError("model: a block with cross has a dense MLP, three norms and nothing else")

    @property
    def norms(self) -> tuple[str, ...]:
        """The names of the norms that there are."""
        if self.cross is not None:
            after = ("attention_post_norm", "cross_post_norm", "mlp_post_norm") if self.post_norm else ()
            return ("attention_norm", "cross_norm", "mlp_norm", *after)
        before = ("attention_norm",) if self.parallel == "shared" else ("attention_norm", "mlp_norm")
        before = before if self.attention_normed else before[1:]
        if isinstance(self.mlp, MoE) and self.mlp.norms:  # which norm what they read by themselves
            before = tuple(name for name in before if name != "mlp_norm")
        after = ("attention_post_norm", "mlp_post_norm") if self.post_norm else ()
        names = (*(before if self.pre_norm else ()), *after)
        return names if self.mlp else tuple(name for name in names if not name.startswith("mlp"))

    @property
    def position(self) -> Any:
        """The positions of its attention, or of that which it shares."""
        return self.shared.attention.position if self.shared else self.attention.position

    def state(self) -> LayerState:
        """An empty state of its mixer, or of both, or of its mixer and its cross-attention."""
        from cutaway.attention.state import Both

        own, second = self.attention.state(), self.cross or (self.beside and self.beside.mixer)
        second = second or (self.shared and self.shared.attention)
        return Both(own, second.state()) if second else own

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one more token of its own text, for numbers of ``entry`` bytes."""
        return sum(mixer.bytes_per_token(entry) for mixer in self.own_mixers)

    @property
    def own_mixers(self) -> tuple[Any, ...]:
        """What keeps something of the block's own text: its mixer, and one beside it or a shared layer's."""
        second = self.shared.attention if self.shared else self.beside.mixer if self.beside else None
        return (self.attention,) if second is None else (self.attention, second)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        parts = {"attention": self.attention.weights(width)}
        parts |= {"beside": self.beside.mixer.weights(width)} if self.beside else {}
        parts |= {"shared": self.shared.weights(width)} if self.shared else {}
        parts |= {"cross": self.cross.weights(width)} if self.cross else {}
        parts |= {"mlp": self.mlp.weights(width)} if self.mlp else {}
        parts |= {name: self.norm.weights(width) for name in self.norms}
        if self.per_layer is not None:
            norm = {f"norm.{name}": shape for name, shape in self.norm.weights(width).items()}
            matrices = {"gate.weight": (self.per_layer, width), "out.weight": (width, self.per_layer)}
            parts["per_layer"] = matrices | norm
        norm = self.norm.weights(width)
        if self.laurel is not None:
            parts["laurel"] = {"down.weight": (self.laurel, width), "up.weight": (width, self.laurel)}
            parts["laurel"] |= {f"norm.{name}": shape for name, shape in norm.items()}
        if (p := self.streams) is not None:
            matrices = {"router.weight": (p, width), "predict.weight": (p * p, p), "correct.weight": (p, p)}
            router_norm = {f"router_norm.{name}": shape for name, shape in norm.items()}
            parts["altup"] = {**matrices, **router_norm, "scale": (width,)}
        out = {f"{part}.{name}": shape for part, inner in parts.items() for name, shape in inner.items()}
        return out | ({"scale": (1,)} if self.scaled else {})


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
    are normed before their positions are added (BlenderBot).
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
        for n, block in enumerate(self.blocks):
            self._check_shared(n, block.attention)
        for block in self.blocks:
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


@cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a class's entries."""
    return typing.get_type_hints(cls)


def _choices(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in UNIONS else (hint,)


def _classes(hint: Any) -> dict[str, type]:
    """The config classes that a type allows, by kind; the first is the default."""
    found = [typing.cast(type, choice) for choice in _choices(hint) if is_dataclass(choice)]
    return {choice.__name__.lower(): choice for choice in found}


def _unusual(hint: Any) -> list[type]:
    """All but the default: a file must name their kind."""
    return list(_classes(hint).values())[1:]


def to_dict(config: Any) -> Any:
    """Plain dictionaries, lists and numbers for JSON or YAML, without the values that equal their default."""
    if not is_dataclass(config):
        return [to_dict(item) for item in config] if isinstance(config, tuple) else config
    out: dict[str, Any] = {}
    hints = _hints(type(config))
    for f in fields(config):
        value = getattr(config, f.name)
        if f.default is not MISSING and value == f.default:
            continue
        if f.name == "blocks":
            out["blocks"] = [{"times": len(list(same)), **to_dict(block)} for block, same in groupby(value)]
        elif ("variants" in f.metadata and value is not None) or type(value) in _unusual(hints[f.name]):
            out[f.name] = {"kind": kind_of(value), **to_dict(value)}
        else:
            out[f.name] = to_dict(value)
    return out


def from_dict(data: Any, cls: type = Decoder, where: str = "config") -> Any:
    """The dataclass that ``to_dict`` wrote. UserError for an unknown, missing or wrong entry."""
    if not isinstance(data, dict):
        raise UserError(f"{where} is {quoted(data)}; it must be entries by name")
    hints = _hints(cls)
    known = {f.name: f for f in fields(cls)}
    for name in data:
        if name not in known:
            shown = escaped(f"{name}")[:80]
            raise UserError(f"{where}.{shown}: there is no such entry here; known: {', '.join(known)}")
    for name, f in known.items():
        if name not in data and f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"{where}.{name}: is missing")
    values = {
        name: _entry(known[name], hints[name], value, f"{where}.{name}") for name, value in data.items()
    }
    for name, value in values.items():
        check(value, bounds_of(cls)[name], f"{where}.{name}")
    return cls(**values)


def _entry(f: Any, hint: Any, value: Any, where: str) -> Any:
    if f.name == "blocks":
        return _blocks(value, where)
    if value is None and type(None) in typing.get_args(hint):
        return None
    if "variants" in f.metadata:
        if not isinstance(value, dict) or "kind" not in value:
            raise UserError(f"{where} is {quoted(value)}; it must be an entry with a kind")
        cls = variant(f.metadata["variants"], value["kind"], where)
        return from_dict({name: v for name, v in value.items() if name != "kind"}, cls, where)
    classes = _classes(hint)
    if classes:
        kind = next(iter(classes))
        if len(classes) > 1 and isinstance(value, dict):
            kind = value.get("kind", kind)
            value = {name: v for name, v in value.items() if name != "kind"}
        if not isinstance(kind, str) or kind not in classes:
            raise UserError(f"{where}.kind: there is no {quoted(kind)}; known: {', '.join(classes)}")
        return from_dict(value, classes[kind], where)
    return _plain(_choices(hint), value, where)


def _plain(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    for choice in choices:
        origin = typing.get_origin(choice)
        if origin is typing.Literal and value in typing.get_args(choice):
            return value
        if origin is tuple and isinstance(value, list | tuple):
            inner = typing.get_args(choice)[0]
            if is_dataclass(inner):
                return tuple(
                    from_dict(item, typing.cast(type, inner), f"{where}[{i}]") for i, item in enumerate(value)
                )
            return tuple(_plain((inner,), item, where) for item in value)
        if choice is float and (type(value) is float or (type(value) is int and is_finite(value))):
            return float(value)
        if isinstance(choice, type) and type(value) is choice:
            return value
    names = " or ".join(getattr(choice, "__name__", str(choice)) for choice in choices)
    raise UserError(f"{where} is {quoted(value)}; it must be {names}")


def _blocks(value: Any, where: str) -> tuple[Block, ...]:
    if not isinstance(value, list):
        raise UserError(f"{where} is {quoted(value)}; it must be a list of blocks")
    blocks: list[Block] = []
    for i, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise UserError(f"{where}[{i}] is {quoted(entry)}; it must be a block")
        times = entry.get("times", 1)
        if type(times) is not int or not 1 <= times <= 10_000:
            raise UserError(f"{where}[{i}].times is {quoted(times)}; it must be from 1 to 10000")
        block = from_dict({k: v for k, v in entry.items() if k != "times"}, Block, f"{where}[{i}]")
        blocks += [block] * times
    return tuple(blocks)


def mixer(kind: str, **fields: Any) -> Any:
    """The config of a mechanism of ``attention/`` by its kind; its file, imported here, may need torch."""
    return variant("cutaway.attention", kind, "attention")(**fields)


def kind_of(config: Any) -> str:
    cls = type(config)
    return cls.__module__.rsplit(".", 1)[1] if cls.__name__ == "Config" else cls.__name__.lower()


def variant(home: str, kind: Any, where: str) -> type[Any]:
    """The config class of a kind: ``Config`` of a file in a folder, or a class of a file."""
    module = importlib.import_module(home)
    if hasattr(module, "__path__"):
        names = [m.name for m in pkgutil.iter_modules(module.__path__) if not m.ispkg]
        if kind in names and hasattr(found := importlib.import_module(f"{home}.{kind}"), "Config"):
            return found.Config
        modules = {name: importlib.import_module(f"{home}.{name}") for name in names}
        classes = {name: each.Config for name, each in modules.items() if hasattr(each, "Config")}
    else:
        classes = {
            n.lower(): c
            for n, c in vars(module).items()
            if isinstance(c, type) and is_dataclass(c) and c.__module__ == home
        }
    if isinstance(kind, str) and kind in classes:
        return classes[kind]
    raise UserError(f"{where}.kind: there is no {quoted(kind)}; known: {', '.join(classes)}")
