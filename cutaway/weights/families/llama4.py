"""Llama 4 (2025), text: attention within chunks, and without positions in every fourth layer, over all.

Queries and keys are normed after rotation, without weights; where they do not rotate, queries grow with their
position. One expert of each mixture reads its input times its score, beside an expert that all tokens pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cutaway.attention import chunked
from cutaway.attention.common.heads import Temperature
from cutaway.errors import UserError
from cutaway.layers.config import MLP, MoE, Norm, Router
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families import llama, smollm3
from cutaway.weights.family import FLAG, NUMBER, Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rows import FULL
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import chain, each, split, transpose

ALIASES = ("llama4_text",)
CHUNKED = "chunked_attention"
STEP = "interleave_moe_layer_step"
UNNORMED = 128  # experts of the model whose queries and keys llama.cpp does not norm


class Nope(smollm3.Nope):
    """An empty list is none."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if not fields.gguf and fields.get("no_rope_layers") == []:
            data = {key: value for key, value in fields.data.items() if key != "no_rope_layers"}
            given = Fields(data, fields.where)
            fields.get("no_rope_layer_interval")
            return super().read(given, known, own)
        return super().read(fields, known, own)


class Chunks(Row):
    """Which layers attend within chunks: those listed, or those that rotate."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        rotates = [not nope for nope in known["nope"]]
        if fields.gguf:
            return {"chunks": tuple(8192 if each else None for each in rotates)}
        stated = fields.has("attention_chunk_size")
        chunk = fields.integer("attention_chunk_size", None if stated else 8192)
        kinds = fields.each_layer("layer_types", known["layers"], (CHUNKED, FULL))
        within = rotates if kinds is None else [kind == CHUNKED for kind in kinds]
        if kinds and any(within) and chunk is None:
            raise fields.refusal("layer_types", "names chunked layers, but attention_chunk_size is null")
        return {"chunks": tuple(chunk if each else None for each in within)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            return {}
        kinds = [FULL if chunk is None else CHUNKED for chunk in known["chunks"]]
        chunk = next((chunk for chunk in known["chunks"] if chunk is not None), None)
        return {"attention_chunk_size": chunk, "layer_types": kinds}


class Sparse(Row):
    """Which layers have experts: those listed, or every so many; in GGUF the latter."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers, key = known["layers"], STEP
        listed = None if fields.gguf else fields.indices("moe_layers", layers)
        step = fields.integer(key) if fields.gguf or fields.stated(key) else 1
        found = range(step - 1, layers, step) if listed is None else listed
        return {"dense": tuple(n not in found for n in range(layers))}

    def write(self, known: Settings, gguf: bool) -> Entries:
        found = [n for n, dense in enumerate(known["dense"]) if not dense]
        if not gguf:
            return {"moe_layers": found}
        step = found[0] + 1 if found else len(known["dense"]) + 1
        if found != list(range(step - 1, len(known["dense"]), step)):
            raise UserError("experts in layers that no step says is not supported in GGUF")
        return {STEP: step}


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    norm = Norm("rms", known["eps"])
    after = Norm("rms", known["eps"], weight=False) if known["qk_normed"] else None
    grows = Temperature(known["beta"], known["floor"], 1) if known["tuned"] else None
    sparse = MoE(
        known["experts"],
        known["top_k"],
        known["expert_hidden"],
        known["activation"],
        normalised=False,
        shared=known["expert_hidden"],
        router=Router("sigmoid", on_input=True),
    )
    dense = MLP(known["hidden"], known["activation"])

    def attention(nope: bool, chunk: int | None) -> Any:
        own = {
            "key_size": known["head_size"],
            "position": None if nope else known["rope"],
            "qk_norm": None if nope else after,
            "qk_norm_after": not nope and after is not None,
            "temperature": grows if nope else None,
            "bias": known["bias"],
            "out_bias": known["out_bias"],
        }
        if chunk is None:
            return decoders.heads(known["heads"], known["kv_heads"], **own)
        return chunked.Config(heads=known["heads"], kv_heads=known["kv_heads"], chunk=chunk, **own)

    each = zip(known["nope"], known["chunks"], known["dense"], strict=True)
    blocks = tuple(
        Block(attention(nope, chunk), dense if plain else sparse, norm) for nope, chunk, plain in each
    )
    return Decoder(known["vocab"], known["width"], known["context"], blocks, norm, known["tied"])


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config; one that no layer shows is the usual."""
    known = decoders.settings(config)
    mixers: Sequence[Any] = [block.attention for block in config.blocks]
    near = [of for of in mixers if of.position is not None]
    far = [of for of in mixers if of.position is None]
    grows = far[0].temperature if far else Temperature(0.1, 8192, 1)
    usual = {"experts": 16, "top_k": 1, "expert_hidden": 1, "hidden": 1}
    return {
        **usual,
        **known,
        "chunks": tuple(getattr(of, "chunk", None) for of in mixers),
        "qk_normed": not near or near[0].qk_norm is not None,
        "tuned": grows is not None,
        "beta": grows.beta if grows else 0.1,
        "floor": grows.original if grows else 8192,
    }


FEED = "model.layers.{n}.feed_forward"
EXPERT = "blocks.{n}.mlp.experts.{e}"
BOTH = (f"{EXPERT}.gate.weight", f"{EXPERT}.up.weight")
FAMILY = llama.FAMILY.but(
    "llama4",
    "Llama4ForCausalLM",
    hf_type="llama4_text",
    hf=(
        *naming.renamed(naming.HF_DECODER, (".mlp.", ".feed_forward.")),
        *naming.weights(
            (f"{FEED}.router", "blocks.{n}.mlp.router"),
            *(
                (f"{FEED}.shared_expert.{name}_proj", f"blocks.{{n}}.mlp.shared.{name}")
                for name in ("gate", "up", "down")
            ),
        ),
        Rule(f"{FEED}.experts.gate_up_proj", BOTH, each(chain(transpose, split), 2)),
        Rule(f"{FEED}.experts.down_proj", f"{EXPERT}.down.weight", each(transpose)),
    ),
    gguf=(*naming.GGUF_PLAIN, *naming.GGUF_EXPERTS, *naming.GGUF_SHARED_EXPERT[1:]),
    rows=(
        *rows.turning(rows.SIZES, interleaved=True),
        Field("hidden", "intermediate_size_mlp", "feed_forward_length", each_layer=True),
        Field("experts", "num_local_experts", "expert_count", rows.TOP_K),
        Field("top_k", "num_experts_per_tok", "expert_used_count", rows.TOP_K),
        Field("expert_hidden", "intermediate_size", "expert_feed_forward_length"),
        Only(None, "expert_gating_func", (2,), "another score of experts than a sigmoid"),
        Nope(),
        Chunks(),
        Sparse(),
        Field("qk_normed", "use_qk_norm", None, FLAG),
        Field("tuned", "attn_temperature_tuning", None, FLAG),
        Field("beta", "attn_scale", None, NUMBER),
        Field("floor", "floor_scale", None),
        *rows.biases("attention_bias"),
    ),
    build=decoder,
    describe=settings,
    defaults={"vocab": 202048, "width": 5120, "layers": 48, "heads": 40, "kv_heads": 8, "head_size": 128}
    | {"context": 131072, "eps": 1e-5, "rope_base": 5e5, "hidden": 16384, "experts": 16, "top_k": 1}
    | {"expert_hidden": 8192, "qk_normed": True, "tuned": True, "beta": 0.1, "floor": 8192},
    gguf_fixed={"qk_normed": lambda known: known["experts"] != UNNORMED, "tuned": True, "beta": 0.1}
    | {"floor": 8192, "bias": False, "out_bias": False},
    sparse=None,
    mixers=("chunked", "mha", "gqa", "mqa"),
    harmless=("for_llm_compressor",),
)
