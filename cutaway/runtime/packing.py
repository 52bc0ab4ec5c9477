"""A model made ready to run: its config and packed weights as the structures that one native call walks
through.

Matrices are laid out anew as panels (panels.py), at the size they have in their file; what was read of the
mapped file is given back to the system as loading goes on, so that memory never holds both. Models that the
step does not know are refused here, by a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import Packed
from cutaway.layers.config import MLP, MoE, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of
from cutaway.native import packed_product, step, structures
from cutaway.native.quant import LAYOUTS
from cutaway.position import alibi, learned, rope
from cutaway.position.scaling import DynamicNTK, LongRoPE
from cutaway.quantization import formats
from cutaway.runtime import arithmetic, cache
from cutaway.runtime.packed import Packing, aligned, type_it_runs_as
from cutaway.weights import rules
from cutaway.weights.rules import Tensors

GATED = ("gated", "gated_local")
KINDS = ("mha", "gqa", "mqa", "local", *GATED, "differential")
LATENT = ("mla", "dsa")
HEADS_AT_ONCE = 8  # of latent attention, at most: they read the same rows in one piece of work
LIFTED = {"gate": "gate_down", "gate_up": "gate", "step": "forget_down", "step_up": "forget"}  # of kda
CHANNELS = 16  # to a multiple of which the state of a convolution is filled up
LAMBDAS = ("lambda_query_one", "lambda_key_one", "lambda_query_two", "lambda_key_two")  # of differential
INDEX_NORM = Norm("layer", 1e-6)  # of an indexer's keys
TABLES = ("embedding.weight", "per_layer.embedding.weight")  # whose rows are read as their file has them


def unsupported_reason(config: Decoder, tensors: Tensors) -> str | None:
    """Why the runtime cannot run this model, in words that follow "because"; None where it can."""
    if config.position is not None and not isinstance(config.position, learned.Config):
        return "sinusoids are added to the embeddings"
    if config.norm_then_position:
        return "positions are added to its embeddings after their norm"
    if config.table is not None:
        return "its embedding table is not one matrix"
    if config.streams:
        return "it has several residual streams"
    if config.per_layer is not None and config.per_layer.vocab < config.vocab:
        return "its per-layer embeddings have fewer rows than its vocabulary"
    if config.logits_bias or config.one_relative or not config.last_norm:
        return "its logits have a bias, its blocks one table of relative positions, or its end no norm"
    for n, block in enumerate(config.blocks):
        reason = _unsupported_block(block)
        if reason is not None:
            return f"block {n}: {reason}"
    if len(_first_lengths(config)) > 1:
        return "its layers rotate otherwise from different lengths on"
    for name, shape in config.weights().items():
        if _is_matrix(name, shape) and name not in TABLES:
            type = _as_laid(name, shape, config, tensors)[1]
            if type not in packed_product.TYPES:
                return f"the weight {name} is stored as {type}"
    table = tensors.later("embedding.weight").type
    for name in (name for name in TABLES if name in tensors):
        if tensors.later(name).type not in LAYOUTS:
            return f"the table {name} is stored as {tensors.later(name).type}"
    if config.tied and table not in packed_product.TYPES:
        return f"the embedding table, which is also the head, is stored as {table}"
    return None


def _first_lengths(config: Decoder) -> set[int]:
    """Lengths past which some layers rotate otherwise (LongRoPE)."""
    positions = (block.attention.position for block in config.blocks)
    scalings = (position.scaling for position in positions if isinstance(position, rope.Config))
    return {scaling.original for scaling in scalings if isinstance(scaling, LongRoPE)}


def first_length(config: Decoder) -> int | None:
    """The length past which a text rotates otherwise, as a whole; None where it never does."""
    return next(iter(_first_lengths(config)), None)


def _unsupported_block(block: Block) -> str | None:
    attention: Any = block.attention
    if block.cross is not None:
        return "cross-attention has no kernel"
    beside = block.beside and kind_of(block.beside.mixer)
    if beside and (beside not in structures.RECURRENCES or kind_of(attention) not in KINDS):
        return f"{beside} beside {kind_of(attention)} attention has no kernel"
    if kind_of(attention) not in (*KINDS, *LATENT, *structures.RECURRENCES):
        return f"{kind_of(attention)} attention has no kernel"
    mlp = block.mlp
    if block.per_layer and mlp and mlp.activation == "xielu":
        return "its per-layer embeddings have learned activations"
    if isinstance(mlp, MLP) and mlp.sparsity:
        return "its gates are 0 where they are small"
    if block.shared:
        return "it shares a transformer with other layers"
    if block.laurel:
        return "it has a matrix beside attention"
    if isinstance(mlp, MLP) and mlp.hidden_norm:
        return "its MLP has a norm between its matrices"
    if isinstance(mlp, MoE):
        if mlp.bias and mlp.shared:
            return "its shared expert has biases"
        if mlp.router.by_logits:
            return "its experts are chosen by logits"
        if mlp.latent or mlp.norms or mlp.router.on_input:
            return "its experts are of a latent, have norms of their own, or weigh what they read"
        if mlp.activation == "xielu":
            return "its experts have activations of their own"
        if mlp.router.score == "sparsemixer":
            return "its router is SparseMixer"
    if kind_of(attention) in structures.RECURRENCES:
        odd = getattr(attention, "apart", False) or getattr(attention, "negative", False)
        if odd:
            return "its delta rule has a convolution of each part, or betas above 1"
        odd = getattr(attention, "direct", False) or getattr(attention, "bound", None) is not None
        return "its decays have one matrix, or a bound" if odd else None
    if getattr(attention, "gated", False):
        return "its latent attention has gates"
    if getattr(attention, "interleaved", False) or getattr(attention, "index_layer", None) is not None:
        return "its indexer rotates neighbouring pairs, or reads another layer's choice"
    if getattr(attention, "temperature", None) and attention.temperature.first:
        return "its queries grow from another position than 0"
    if kind_of(attention) in GATED and (attention.softplus or attention.per_head):
        return "its gates are softplus or one number a head"
    if getattr(attention, "value_scale", 1.0) != 1.0:
        return "its values are scaled"
    relative = None if latent(block) else attention.relative
    if relative is not None and type(relative) is not alibi.Config:
        return "its scores have learned biases"
    position = attention.position
    if position is not None and type(position) is not rope.Config:
        return "its positions are of another kind than RoPE"
    if position is not None and isinstance(position.scaling, DynamicNTK):
        return "its positions change as the text grows"
    return None


class PackedModel(Packing):
    """A model's structures, and the memory they point to."""

    def __init__(self, config: Decoder, tensors: Tensors, kv_cache: cache.Kind = "F16") -> None:
        cache.check(kv_cache)
        self._cache: cache.Kind = kv_cache
        reason = unsupported_reason(config, tensors)
        if reason is not None:
            raise UserError(f"The runtime does not run this model, because {reason}: use engine='pytorch'")
        self.config = config
        super().__init__(tensors, _total(config.weights(), config, tensors))
        self.token_nbytes = _total(config.active(), config, tensors)  # what one token reads of them
        self._names = frozenset(config.weights())
        self._offsets: dict[int, int] = {}  # of each layer with keys and values, where they begin in a page
        self.page_halves = 0
        self.state_size = 0  # floats of a text's state of recurrent layers
        positions = [block.attention.position for block in config.blocks]
        self._rotations = list(dict.fromkeys(each for each in positions if each is not None))
        self._layers = (structures.Layer * len(config.blocks))(*map(self._layer, range(len(config.blocks))))
        self.model = self._model()
        self._finish()

    def _model(self) -> structures.Model:
        config = self.config
        rotations = (structures.Rotation * max(1, len(self._rotations)))(
            *map(self._rotation, self._rotations)
        )
        head = self._matrix("embedding" if config.tied else "head")
        rows = np.empty((0, 0), np.uint8)  # a tied table is read out of the head's panels
        if not config.tied:
            rows = self._table("embedding.weight")
        self._kept.append(rotations)
        return structures.Model(
            layers=self._layers,
            rotations=rotations,
            embedding=None if config.tied else rows.ctypes.data,
            positions=self._positions(),
            embedding_norm=self._norm("embedding_norm", config.embedding_norm, config.width),
            norm=self._norm("norm", config.norm, config.width),
            head=head,
            per_layer=self._per_layer(),
            embedding_row=rows.shape[1],
            state_size=self.state_size,
            embedding_type=LAYOUTS[self._tensors.later("embedding.weight").type].id,
            layer_count=len(config.blocks),
            rotation_count=len(self._rotations),
            width=config.width,
            vocab=config.vocab,
            embedding_scale=config.embedding_scale,
            logit_scale=config.logit_scale,
            softcap=config.softcap or 0.0,
        )

    def _per_layer(self) -> structures.PerLayer:
        """The embeddings that each block has of a token; without rows where there are none."""
        of, name = self.config.per_layer, "per_layer.embedding.weight"
        if of is None:
            return structures.PerLayer()
        rows, scales = self._table(name), per_layer_scales(self.config)
        return structures.PerLayer(
            projection=self._matrix("per_layer.projection"),
            table=rows.ctypes.data,
            norm=self._norm("per_layer.norm", self.config.norm, of.size),
            row=rows.shape[1],
            type=LAYOUTS[self._tensors.later(name).type].id,
            size=of.size,
            **dict(zip(("table_scale", "projection_scale", "scale"), scales, strict=True)),
        )

    def _layer(self, n: int) -> structures.Layer:
        block, path = self.config.blocks[n], f"blocks.{n}"
        width, mlp, mixer = self.config.width, block.mlp, block.attention
        (a_in, b_in), (a_out, b_out) = (
            (block.beside.inputs, block.beside.outputs) if block.beside else ((1.0, 1.0), (1.0, 1.0))
        )
        fields: dict[str, Any] = {}
        if attends(block):
            fields = self._heads(n, mixer) | {"input": a_in, "output": a_out}
            if block.beside:
                fields["recurrence"] = self._recurrence(f"{path}.beside", block.beside.mixer, b_in)
        elif latent(block):
            fields = self._latent(n, mixer) | {"input": a_in, "output": a_out}
        else:
            fields = {"recurrence": self._recurrence(f"{path}.attention", mixer, 1.0), "rotation": -1}
        if mlp is not None:
            fields |= (self._mixture if isinstance(mlp, MoE) else self._mlp)(f"{path}.mlp")
            fields["activation"] = self._activation(f"{path}.mlp", mlp)
        if block.per_layer is not None:
            fields["per_layer"] = structures.PerLayerInput(
                self._matrix(f"{path}.per_layer.gate"),
                self._matrix(f"{path}.per_layer.out"),
                self._norm(f"{path}.per_layer.norm", block.norm, width),
            )
        scales = (getattr(mlp, "gate_scale", 1.0), mlp.out_scale if mlp else 1.0)
        return structures.Layer(
            **fields,
            **{name: self._norm(f"{path}.{name}", block.norm, width) for name in block.norms},
            parallel=structures.PARALLEL.index(block.parallel),
            residual=block.residual,
            block_scale=float(formats.unpack(self._tensors[f"{path}.scale"])[0]) if block.scaled else 1.0,
            recurrent_output=b_out,
            gate_scale=scales[0],
            out_scale=scales[1],
        )

    def _recurrence(self, path: str, of: Any, input: float) -> structures.Recurrence:
        """A recurrent mixer, and its place in the state of a text."""
        kind, sizes = kind_of(of), {"value_size": 0, "key_size": 0, "heads": 1, "groups": 1}
        vectors: dict[str, Any] = {"conv": self._convolution(path, kind)}
        if f"{path}.conv.bias" in self._names:
            vectors["conv_bias"] = self._vector(f"{path}.conv.bias")
        at = self.state_size
        self.state_size += aligned(of.channels * (of.conv - 1), CHANNELS)
        if kind != "short_conv":
            groups = of.heads if kind == "kda" else of.groups
            sizes = {"value_size": of.values, "key_size": of.key_size, "heads": of.heads, "groups": groups}
            self.state_size += of.heads * of.key_size * aligned(of.values, packed_product.PANEL)
            rate = arithmetic.exp(formats.finite(f"{path}.decay.A_log", self._tensors[f"{path}.decay.A_log"]))
            vectors |= {"rate": self._keep(rate), "step_bias": self._vector(f"{path}.decay.dt_bias")}
        norm = structures.Norm()
        if kind in ("gated_delta", "kda"):
            norm = self._norm(f"{path}.norm", of.norm, of.values)
        if kind == "mamba2":
            vectors["skip"] = self._vector(f"{path}.D")
            if of.normed:
                norm = structures.Norm(
                    self._vector(f"{path}.norm"), None, structures.NORM_KINDS.index("rms"), of.eps
                )
        matrices = {"step": "forget"} if kind == "gated_delta" else LIFTED if kind == "kda" else {}
        return structures.Recurrence(
            **{
                name: self._matrix(f"{path}.{matrices.get(name, name)}")
                for name in structures.RECURRENT
                if f"{path}.{matrices.get(name, name)}.weight" in self._names
            },
            **vectors,
            **sizes,
            norm=norm,
            state_at=at,
            kind=structures.RECURRENCES.index(kind),
            conv_size=of.conv,
            norm_first=getattr(of, "normed", None) == "first",
            least=getattr(of, "least", None) or 0.0,
            input=input,
            multipliers=tuple(getattr(of, "multipliers", (1.0,) * 5)),
        )

    def _convolution(self, path: str, kind: str) -> int:
        """The weights of a convolution, of Kimi Delta Attention's three one after another."""
        if kind != "kda":
            return self._vector(f"{path}.conv.weight")
        names = [f"{path}.conv.{part}.weight" for part in ("query", "key", "value")]
        return self._keep(np.concatenate([formats.finite(name, self._tensors[name]) for name in names]))

    def _heads(self, n: int, attention: Any) -> dict[str, Any]:
        """Softmax attention over heads, and its place in the pages."""
        path, pairs = f"blocks.{n}", 2 if kind_of(attention) == "differential" else 1
        if attention.kv_layer is None:
            stride = aligned(pairs * attention.values, packed_product.PANEL)
            self._offsets[n] = self.page_halves
            keys = attention.groups * cache.halves(self._cache, attention.key_size)
            values = attention.groups // pairs * cache.halves(self._cache, stride)
            self.page_halves += step.PAGE * (keys + values)
        sharper, projected = attention.temperature, {"query": True, **attention.projected, "out": True}
        norms = {
            name: (f"{path}.attention.{name}", attention.qk_norm, size)
            for name, size in attention.normed.items()
            if name == "query_norm" or attention.kv_layer is None
        }
        norms["value_norm"] = (f"{path}.attention.value_norm", attention.value_norm, attention.values)
        matrices = {
            name: self._matrix(f"{path}.attention.{name}") for name, there in projected.items() if there
        }
        if kind_of(attention) in GATED:
            matrices["output_gate"] = self._matrix(f"{path}.attention.gate")
        own: dict[str, Any] = {}
        if kind_of(attention) == "differential":
            norm, size = difference_norm(attention), 2 * attention.values
            own["difference_norm"] = self._norm(f"{path}.attention.head_norm", norm, size)
            own["lambda_"], own["kept"] = difference(f"{path}.attention", attention, self._tensors)
        return dict(
            **matrices,
            **own,
            **{name: self._norm(*each) for name, each in norms.items()},
            sinks=self._vector(f"{path}.attention.sinks") if attention.sinks else None,
            alibi=self._keep(alibi_of(attention)) if attention.relative else None,
            page_offset=self._offsets[n if attention.kv_layer is None else attention.kv_layer],
            cache=cache.KINDS.index(self._cache),
            sharpness=sharper.beta if sharper else 0.0,
            sharp_from=sharper.original if sharper else 1,
            heads=attention.heads,
            groups=attention.groups,
            key_size=attention.key_size,
            value_size=pairs * attention.values,
            window=window_of(attention) or 0,
            rotation=-1 if attention.position is None else self._rotations.index(attention.position),
            norm_over=structures.OVER.index(attention.qk_norm_over),
            norm_after=attention.qk_norm_after,
            value_of_key=attention.value_of_key,
            scale=attention.key_size**-0.5 if attention.scale is None else attention.scale,
            softcap=attention.softcap or 0.0,
            clip=attention.clip or 0.0,
        )

    def _latent(self, n: int, of: Any) -> dict[str, Any]:
        """Latent attention, absorbed, and its place in the pages."""
        path, row = f"blocks.{n}.attention", latent_row(of)
        self._offsets[n] = self.page_halves
        self.page_halves += step.PAGE * cache.halves(self._cache, row)
        down = of.query_latent is not None
        own = structures.Latent(
            index=self._indexer(path, of) if indexed(of) else structures.Indexer(),
            **({"query": self._matrix(f"{path}.query")} if down else {}),
            key_up=self._each_head(key_up(path, of, self._tensors), of.heads, f"{path}.key_up"),
            value_up=self._each_head(self._tensors[f"{path}.value_up.weight"], of.heads, f"{path}.value_up"),
            query_norm=self._norm(f"{path}.query_norm", of.norm, of.query_latent)
            if down
            else structures.Norm(),
            size=of.latent,
            rope=of.rope_dim,
            key_size=of.key_size,
            value_size=of.values,
        )
        return {
            "query": self._matrix(f"{path}.query_down" if down else f"{path}.query"),
            "key": self._matrix(f"{path}.down"),
            "out": self._matrix(f"{path}.out"),
            "key_norm": self._norm(f"{path}.latent_norm", of.norm, of.latent),
            "latent": own,
            "page_offset": self._offsets[n],
            "cache": cache.KINDS.index(self._cache),
            "sharp_from": 1,
            "heads": of.heads,
            "groups": next(
                g for g in range(1, of.heads + 1) if of.heads % g == 0 and of.heads // g <= HEADS_AT_ONCE
            ),
            "key_size": row,
            "value_size": of.latent,
            "rotation": -1 if of.position is None else self._rotations.index(of.position),
            "scale": latent_scale(of),
        }

    def _indexer(self, path: str, of: Any) -> structures.Indexer:
        """What chooses the keys of latent attention, and where its own keys are in the pages."""
        at = self.page_halves
        self.page_halves += step.PAGE * cache.halves(self._cache, of.index_size)
        scale, weight_scale = index_scales(of)
        return structures.Indexer(
            **{name: self._matrix(f"{path}.index_{name}") for name in structures.INDEXER},
            norm=self._norm(f"{path}.index_norm", INDEX_NORM, of.index_size),
            page_offset=at,
            heads=of.index_heads,
            size=of.index_size,
            top_k=of.top_k,
            scale=scale,
            weight_scale=weight_scale,
        )

    def _positions(self) -> int | None:
        """Where the vector of position 0 is, of those that are added to embeddings."""
        of = self.config.position
        if not isinstance(of, learned.Config):
            return None
        return self._vector("position.weight") + 4 * of.offset * self.config.width

    def _mlp(self, path: str) -> dict[str, packed_product.Matrix]:
        """The matrices of an MLP; without a gate where it has none."""
        names = [name for name in structures.EXPERT if f"{path}.{name}.weight" in self._names]
        return {name: self._matrix(f"{path}.{name}") for name in names}

    def _mixture(self, path: str) -> dict[str, Any]:
        """The experts of a layer, what routes to them, and in the MLP's place the one all tokens pass."""
        of: MoE = self.config.blocks[int(path.split(".")[1])].mlp  # pyright: ignore[reportAssignmentType]
        experts = [structures.Expert(**self._mlp(f"{path}.experts.{e}")) for e in range(of.experts)]
        held = (structures.Expert * len(experts))(*experts)
        self._kept.append(held)
        routers = [name for name in structures.ROUTERS if f"{path}.{name}.weight" in self._names]
        mixture = structures.Mixture(
            **{name: self._matrix(f"{path}.{name}") for name in routers},
            experts=held,
            choice_bias=self._vector(f"{path}.choice_bias") if of.router.choice_bias else None,
            count=of.experts,
            top_k=of.top_k,
            normalised=of.normalised,
            sigmoid=of.router.score == "sigmoid",
            groups=of.router.groups,
            top_groups=of.router.top_groups,
            group_of_two=of.router.group_of_two,
            scale=of.router.scale,
        )
        return {**self._mlp(f"{path}.shared"), "mixture": mixture}

    def _each_head(self, packed: Packed, heads: int, path: str) -> packed_product.Matrix:
        """The first head's rows of a matrix; those of the others are behind them in whole panels."""
        rows, columns = packed.shape[0] // heads, packed.shape[1]
        size = packed_product.packed_bytes(packed.type, rows, columns)
        panels = self._weights.take(heads * size)
        for head in range(heads):
            own = packed.rows(slice(head * rows, (head + 1) * rows))
            self._pack(own, panels[head * size : (head + 1) * size], path)
        return packed_product.Matrix(panels.ctypes.data, None, LAYOUTS[packed.type].id, rows, columns, 0)


def per_layer_scales(config: Decoder) -> tuple[float, float, float]:
    """What multiplies a row of the per-layer table, what projection gives, and their sum."""
    assert config.per_layer is not None
    return config.per_layer.size**0.5, config.width**-0.5, 2.0**-0.5


def difference_norm(attention: Any) -> Norm:
    """The norm of differential attention's differences."""
    return Norm("rms", attention.eps, attention.norm_weight)


def difference(path: str, attention: Any, tensors: Tensors) -> tuple[float, float]:
    """Lambda of differential attention, and what multiplies the normed differences."""
    a1, b1, a2, b2 = (formats.unpack(tensors[f"{path}.{name}"]).astype(np.float64) for name in LAMBDAS)
    start = attention.lambda_start
    return float(np.exp(a1 @ b1) - np.exp(a2 @ b2) + start), 1.0 - start


def alibi_of(attention: Any) -> np.ndarray:
    """What a position of distance takes from the scores of each head: float32 [h] (2108.12409)."""
    return np.array(attention.relative.slopes(attention.heads), np.float32)


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight multiplies vectors; norms with weights for each head have two dimensions too."""
    within = ".conv." not in name and not name.endswith("norm.weight")
    return len(shape) == 2 and within and name != "position.weight"


def window_of(attention: Any) -> int | None:
    """How many tokens a position sees, where it does not see all."""
    return attention.window if kind_of(attention) in ("local", "gated_local") else None


def attends(block: Block) -> bool:
    """Whether a block has softmax attention, alone or beside a recurrence."""
    return kind_of(block.attention) in KINDS


def latent(block: Block) -> bool:
    """Whether a block has latent attention."""
    return kind_of(block.attention) in LATENT


def indexed(attention: Any) -> bool:
    """Whether an indexer chooses the keys of latent attention."""
    return kind_of(attention) == "dsa"


def latent_row(of: Any) -> int:
    """Numbers that the cache has of a token: latent and rotated part, each filled up to whole sixteens."""
    return aligned(of.latent, packed_product.PANEL) + aligned(of.rope_dim, packed_product.PANEL)


def latent_scale(of: Any) -> float:
    """What scores of latent attention are multiplied by."""
    return (of.key_size + of.rope_dim) ** -0.5 if of.scale is None else of.scale


def index_scales(of: Any) -> tuple[float, float]:
    """What an indexer's queries and its heads' weights are multiplied by."""
    return of.index_size**-0.5, of.index_heads**-0.5


def key_up(path: str, of: Any, tensors: Tensors) -> Packed:
    """What moves each head's query to the latents, [heads latent, key_size]."""
    return rules.made(rules.absorbed(tensors, f"{path}.key_up.weight", of.heads))


def _total(weights: Mapping[str, tuple[int, ...]], config: Decoder, tensors: Tensors) -> int:
    """Bytes of these weights' matrices as panels."""
    total = 0
    for name, shape in weights.items():
        if _is_matrix(name, shape) and ((config.tied and name == TABLES[0]) or name not in TABLES):
            count, type, shape = _as_laid(name, shape, config, tensors)
            total += aligned(count * packed_product.packed_bytes(type, *shape))
    return total


def _as_laid(
    name: str, shape: tuple[int, ...], config: Decoder, tensors: Tensors
) -> tuple[int, str, tuple[int, ...]]:
    """How many matrices of which type and shape a weight runs as: one, but of latent attention one a head."""
    if not name.endswith((".key_up.weight", ".value_up.weight")):
        return 1, type_it_runs_as(name, tensors), shape
    heads = config.blocks[int(name.split(".")[1])].attention.heads  # pyright: ignore[reportAttributeAccessIssue]
    entry = tensors.later(name)
    entry = rules.absorbed(tensors, name, heads) if name.endswith(".key_up.weight") else entry
    return heads, entry.type, (entry.shape[0] // heads, entry.shape[1])
