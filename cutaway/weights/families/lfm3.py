"""LFM3 (2026): LFM2 with local attention in some layers, a gate for each head, and norms after each half too.

Global layers rotate a part of the pairs of each head, local ones all.
"""

from __future__ import annotations

from typing import Any

from cutaway.errors import UserError
from cutaway.layers.config import MLP, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.model.kinds import kind_of, mixer
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families import gemma4, lfm2
from cutaway.weights.families.gemma4 import NAMES
from cutaway.weights.families.lfm2 import CONV, attends, is_conv
from cutaway.weights.family import FLAG, NUMBER, Entries, Family, Field, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rows import FULL, SLIDING
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

THEIRS, OURS = "model.layers.{n}", "blocks.{n}.attention"


class Layers(Row):
    """What each layer is: a convolution, or attention to all or to the last tokens."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers = known["layers"]
        usual = [FULL if n % 4 == 2 else SLIDING if n % 4 == 0 and n else CONV for n in range(layers)]
        kinds = fields.each_layer("layer_types", layers, (CONV, FULL, SLIDING)) or usual
        window = fields.integer("sliding_window") if fields.stated("sliding_window") else 256
        near = {FULL: None, SLIDING: window}
        windows = tuple(near[kind] for kind in kinds if kind != CONV)
        return {"kinds": tuple(kinds), "window": window, "windows": windows}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {} if gguf else {"layer_types": list(known["kinds"]), "sliding_window": known["window"]}


class Ropes(gemma4.Ropes):
    """Heads of all layers have one size, and half of the pairs of global ones rotate."""

    part = 0.5

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        return super().read(fields, known | {"global_size": known["head_size"]}, own)


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    norm = Norm("rms", known["eps"])
    conv = mixer("short_conv", channels=known["width"], conv=known["conv"], bias=known["conv_bias"])
    if known["gated"] and known["bias"]:
        raise Fields({}, known["where"]).refusal(
            "attention_bias", "is true: a bias beside gates without one is not supported"
        )

    def attention(kind: str) -> Any:
        window = known["window"] if kind == SLIDING else None
        own = {
            "key_size": known["head_size"],
            "position": known[NAMES[kind]],
            "qk_norm": norm,
            "bias": known["bias"],
            "out_bias": known["bias"],
        }
        if not known["gated"]:
            return decoders.heads(known["heads"], known["kv_heads"], window, **own)
        own |= {"heads": known["heads"], "kv_heads": known["kv_heads"], "per_head": True}
        return mixer("gated", **own) if window is None else mixer("gated_local", window=window, **own)

    mlp = MLP(known["hidden"], "silu")
    blocks = tuple(
        Block(conv if kind == CONV else attention(kind), mlp, norm, post_norm=known["post_norm"])
        for kind in known["kinds"]
    )
    return Decoder(known["vocab"], known["width"], known["context"], blocks, norm, known["tied"])


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    known = decoders.settings(config) | {"conv": 7, "conv_bias": False, "window": 256}
    mixers: list[Any] = [block.attention for block in config.blocks]
    kinds, gated = [], False
    for block, of in zip(config.blocks, mixers, strict=True):
        window = getattr(of, "window", None)
        kinds.append(CONV if is_conv(block) else FULL if window is None else SLIDING)
        if is_conv(block):
            known |= {"conv": of.conv, "conv_bias": of.bias}
            continue
        known |= {NAMES[kinds[-1]]: of.position} | ({} if window is None else {"window": window})
        gated = kind_of(of).startswith("gated")
    if not any(map(attends, config.blocks)) or config.blocks[0].mlp is None:
        raise UserError("none of its layers attends")
    # of ropes those that a layer has
    there = {NAMES[kind] for kind in kinds if kind != CONV}
    known |= {name: known[name] if name in there else None for name in NAMES.values()}
    return known | {"kinds": tuple(kinds), "gated": gated}


FAMILY = lfm2.FAMILY.but(
    "lfm3",
    "Lfm3ForCausalLM",
    modules=((".self_attn.gate_proj.", ".self_attn.g_proj."),),
    hf=(
        *naming.renamed(
            lfm2.HF,
            ("self_attn.out_proj", "self_attn.o_proj"),
            ("q_layernorm", "q_norm"),
            ("k_layernorm", "k_norm"),
        ),
        Rule(f"{THEIRS}.self_attn.gate_proj.weight", f"{OURS}.gate.weight", same, attends),
        *(
            Rule(f"{THEIRS}.self_attn.{name[0]}_proj.bias", f"{OURS}.{name}.bias", same, attends)
            for name in ("query", "key", "value", "out")
        ),
        *naming.weights(
            (f"{THEIRS}.post_operator_norm", "blocks.{n}.attention_post_norm"),
            (f"{THEIRS}.post_ffn_norm", "blocks.{n}.mlp_post_norm"),
        ),
    ),
    gguf=(),
    rows=(
        *rows.replaced(
            rows.SIZES,
            Field("eps", "norm_eps", None, NUMBER, alias="rms_norm_eps"),
            without=("activation", "rope"),
        ),
        Field("hidden", "intermediate_size", None),
        Field("conv", "conv_L_cache", None),
        Field("conv_bias", "conv_bias", None, FLAG),
        Field("post_norm", "use_sandwich_norm", None, FLAG),
        Field("gated", "use_attention_gate", None, FLAG),
        Field("bias", "attention_bias", None, FLAG),
        Layers(),
        Ropes(),
    ),
    build=decoder,
    describe=settings,
    defaults={"vocab": 128_000, "width": 2048, "layers": 24, "heads": 16, "kv_heads": 4, "head_size": 128}
    | {"context": 128_000, "eps": 1e-5, "hidden": 7680, "conv": 7, "post_norm": True, "gated": True},
    forget=("kv_heads", "head_size"),
    mixers=("short_conv", "gated", "gated_local", "mha", "gqa", "mqa", "local"),
    spellings=((".self_attn.g_proj.", ".self_attn.gate_proj."),),
)
