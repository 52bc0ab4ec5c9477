"""Gemma 3n (2025), text: four residual streams, of which each block computes one (AltUp), and more beside it.

A low-rank matrix beside attention (LAuReL), an embedding of each token for each block, sparse gates in the
first layers, the last layers reading the keys and values of earlier ones. Norms hold the factor itself.
"""

from __future__ import annotations

from typing import Any

from cutaway.errors import quoted
from cutaway.layers.config import MLP, Norm, PerLayer
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families import gemma, gemma3, gemma4, llama
from cutaway.weights.family import NUMBER, Entries, Family, Field, Kind, Only, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

ALIASES = ("gemma3n_text",)
STREAMS = 16  # at most


class Widths(Row):
    """The sizes of the MLPs: one, or one a layer."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers, listed = known["layers"], fields.get("intermediate_size")
        if not isinstance(listed, list):
            size = fields.integer("intermediate_size") if fields.stated("intermediate_size") else 16_384
            return {"hidden": (size,) * layers}
        if len(listed) != layers or any(type(n) is not int or not 0 < n < 1 << 31 for n in listed):
            raise fields.refusal(
                "intermediate_size", f"should be a number, or one for each of {layers} layers"
            )
        return {"hidden": tuple(listed)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"intermediate_size": list(known["hidden"])}


class Sparsity(Row):
    """Which part of a layer's gates is 0; by itself 95% in the first ten layers of a deep model."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers, key = known["layers"], "activation_sparsity_pattern"
        listed = fields.get(key)
        if listed is None:
            first = 10 if layers > 10 else 0
            return {"sparsity": (0.95,) * first + (0.0,) * (layers - first)}
        if not isinstance(listed, list) or len(listed) != layers:
            raise fields.refusal(
                key, f"should list a number for each of {layers} layers, but is {quoted(listed)}"
            )
        if any(type(each) not in (int, float) or not 0 <= each < 1 for each in listed):
            raise fields.refusal(key, f"should list numbers from 0 to below 1, but is {quoted(listed)}")
        return {"sparsity": tuple(float(each) for each in listed)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"activation_sparsity_pattern": list(known["sparsity"])}


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    norm, windows = Norm("rms", known["eps"]), known["windows"]

    def block(window: int | None, source: int | None, hidden: int, sparsity: float) -> Block:
        attention = decoders.heads(
            known["heads"],
            known["kv_heads"],
            window,
            key_size=known["head_size"],
            position=known["rope" if window is None else "local_rope"],
            scale=1.0,
            qk_norm=norm,
            bias=known["bias"],
            out_bias=known["out_bias"],
            value_norm=Norm("rms", known["eps"], weight=False),
            kv_layer=source,
        )
        mlp = MLP(hidden, known["activation"], sparsity=sparsity)
        own = {"per_layer": known["per_layer"], "streams": known["streams"], "laurel": known["laurel"]}
        return Block(attention, mlp, norm, post_norm=True, **own)

    sources = gemma4.sources(windows, known["shared_layers"])
    return Decoder(
        known["vocab"],
        known["width"],
        known["context"],
        tuple(map(block, windows, sources, known["hidden"], known["sparsity"])),
        norm,
        known["tied"],
        gemma.embedding_scale(known),
        softcap=known["softcap"],
        per_layer=PerLayer(known["per_layer"], known["per_layer_vocab"], first_beyond=True),
        streams=known["streams"],
    )


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    known = decoders.settings(config)
    blocks: list[Any] = list(config.blocks)
    of: Any = config
    return known | {
        "hidden": tuple(block.mlp.hidden for block in blocks),
        "sparsity": tuple(block.mlp.sparsity for block in blocks),
        "shared_layers": sum(block.attention.kv_layer is not None for block in blocks),
        "per_layer": of.per_layer.size if of.per_layer else None,
        "per_layer_vocab": of.per_layer.vocab if of.per_layer else None,
        "streams": of.streams,
        "laurel": blocks[0].laurel,
    }


LAYER = "model.layers.{n}"
FAMILY = llama.FAMILY.but(
    "gemma3n",
    "Gemma3nForCausalLM",
    hf_type="gemma3n_text",
    hf=(
        *naming.HF_SANDWICH,
        *naming.HF_QK_NORM,
        *naming.weights(
            (f"{LAYER}.per_layer_input_gate", "blocks.{n}.per_layer.gate"),
            (f"{LAYER}.per_layer_projection", "blocks.{n}.per_layer.out"),
            (f"{LAYER}.post_per_layer_input_norm", "blocks.{n}.per_layer.norm"),
            ("model.embed_tokens_per_layer", "per_layer.embedding"),
            ("model.per_layer_model_projection", "per_layer.projection"),
            ("model.per_layer_projection_norm", "per_layer.norm"),
            (f"{LAYER}.altup.correction_coefs", "blocks.{n}.altup.correct"),
            (f"{LAYER}.altup.prediction_coefs", "blocks.{n}.altup.predict"),
            (f"{LAYER}.altup.modality_router", "blocks.{n}.altup.router"),
            (f"{LAYER}.altup.router_norm", "blocks.{n}.altup.router_norm"),
            (f"{LAYER}.laurel.linear_left", "blocks.{n}.laurel.down"),
            (f"{LAYER}.laurel.linear_right", "blocks.{n}.laurel.up"),
            (f"{LAYER}.laurel.post_laurel_norm", "blocks.{n}.laurel.norm"),
            *(
                (f"model.altup_{theirs}.{i}", f"streams.{ours}.{i}")
                for theirs, ours in (("projections", "expand"), ("unembed_projections", "merge"))
                for i in range(STREAMS)
            ),
        ),
        Rule(f"{LAYER}.altup.correct_output_scale", "blocks.{n}.altup.scale", same),
    ),
    gguf=(),
    rows=(
        *rows.replaced(rows.SIZES, gemma3.ACTIVATION, without=("rope",)),
        Widths(),
        Sparsity(),
        rows.LayerTypes(pattern=5, key=None),
        gemma3.TwoRopes(),
        Field("shared_layers", "num_kv_shared_layers", None, gemma4.ANY),
        Field("per_layer", "hidden_size_per_layer_input", None),
        Field("per_layer_vocab", "vocab_size_per_layer_input", None),
        Field(
            "streams", "altup_num_inputs", None, Kind(lambda fields, key: fields.integer(key, high=STREAMS))
        ),
        Field("laurel", "laurel_rank", None),
        Field("softcap", "final_logit_softcapping", None, NUMBER),
        *rows.biases("attention_bias"),
        Only("altup_active_idx", None, (0,), "computing another stream than the first"),
        Only("altup_correct_scale", None, (True,), "an output without a scale"),
        Only("use_bidirectional_attention", None, (False, None), "attention to later tokens"),
    ),
    build=decoder,
    describe=settings,
    defaults={"vocab": 262_400, "width": 2048, "layers": 35, "heads": 8, "kv_heads": 2, "head_size": 256}
    | {"context": 32_768, "activation": "gelu_tanh", "tied": True, "softcap": 30.0, "window": 512}
    | {"shared_layers": 15, "per_layer": 256, "per_layer_vocab": 262_144, "streams": 4, "laurel": 64},
    forget=("kv_heads", "head_size"),
    harmless=("altup_coef_clip", "altup_lr_multiplier", "query_pre_attn_scalar"),  # of training
    also_ignored=gemma4.unused,
)
