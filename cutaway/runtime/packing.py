"""Load a decoder into the runtime: its config and weights as the structures that the native step reads.

Matrices are laid out anew as panels (panels.py), at the size they have in their file; what was read of the
mapped file is given back to the system as loading goes on, so that memory never holds both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import Packed
from cutaway.layers.config import MoE
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of
from cutaway.native import packed_product, step, structures
from cutaway.native.quant import LAYOUTS
from cutaway.position import learned
from cutaway.quantization import formats
from cutaway.runtime import arithmetic, cache_formats
from cutaway.runtime.block_numbers import (
    GATED,
    INDEX_NORM,
    alibi_of,
    attends,
    difference,
    difference_norm,
    index_scales,
    indexed,
    key_up,
    latent,
    latent_row,
    latent_scale,
    per_layer_scales,
)
from cutaway.runtime.packed import TABLES, Packing, aligned, as_laid, is_matrix
from cutaway.runtime.supported import unsupported_reason
from cutaway.weights.decoders import window_of
from cutaway.weights.named_tensors import Tensors

HEADS_AT_ONCE = 8  # of latent attention, at most: they read the same rows in one piece of work
LIFTED = {"gate": "gate_down", "gate_up": "gate", "step": "forget_down", "step_up": "forget"}  # of kda
CHANNELS = 16  # the state of a convolution is padded to a multiple of it


class PackedModel(Packing):
    """A model's structures, and the memory they point to."""

    def __init__(self, config: Decoder, tensors: Tensors, kv_cache: cache_formats.Kind = "F16") -> None:
        cache_formats.check(kv_cache)
        self._cache: cache_formats.Kind = kv_cache
        reason = unsupported_reason(config, tensors)
        if reason is not None:
            raise UserError(f"The runtime does not run this model, because {reason}: use engine='pytorch'")
        self.config = config = replace(config, mtp=())  # heads that draft are packed apart (draft_heads.py)
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
            keys = attention.groups * cache_formats.halves(self._cache, attention.key_size)
            values = attention.groups // pairs * cache_formats.halves(self._cache, stride)
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
            cache=cache_formats.KINDS.index(self._cache),
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
        self.page_halves += step.PAGE * cache_formats.halves(self._cache, row)
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
            "cache": cache_formats.KINDS.index(self._cache),
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
        self.page_halves += step.PAGE * cache_formats.halves(self._cache, of.index_size)
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
        """The index of position 0 in the table of position embeddings."""
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


def _total(weights: Mapping[str, tuple[int, ...]], config: Decoder, tensors: Tensors) -> int:
    """Bytes of these weights' matrices as panels."""
    total = 0
    for name, shape in weights.items():
        if is_matrix(name, shape) and ((config.tied and name == TABLES[0]) or name not in TABLES):
            count, type, shape = as_laid(name, shape, config, tensors)
            total += aligned(count * packed_product.packed_bytes(type, *shape))
    return total
