"""Ling 3 (2026): Kimi Delta Attention with bounded decays in most layers, gated latent attention in some.

Decays and gates have one matrix each. Latent attention rotates neighbouring pairs; experts are DeepSeek-V3's.
"""

from __future__ import annotations

from cutaway.layers.config import Norm
from cutaway.model.config import Decoder, Encoder
from cutaway.model.kinds import mixer
from cutaway.weights import decoders, naming, rotary, rows
from cutaway.weights.families import deepseek_v3, kimi_linear
from cutaway.weights.families.kimi_linear import LINEAR, OURS, is_latent, is_linear
from cutaway.weights.family import FLAG, LAYER_COUNT, NUMBER, Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rows import FULL
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import kernel, same

THEIRS = "model.layers.{n}.attention"


class Rope(deepseek_v3.Rope):
    """A scaling states its original length: transformers takes that of its class where it does not."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        found = super().read(fields, known, own)
        given = fields.section("rope_scaling") or fields.section("rope_parameters")
        stated = fields.has(rotary.ORIGINAL) or (given and given.has(rotary.ORIGINAL))
        if getattr(found["rope"].scaling, "original", None) is not None and not stated:
            raise fields.refusal("rope_parameters", f"should state {rotary.ORIGINAL}")
        return found


class KeyValueHeads(Row):
    """Key-value heads: as many as heads, which share one latent."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        fields.only("num_key_value_heads", (known["heads"], None), "fewer key-value heads than heads")
        return {}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"num_key_value_heads": known["heads"]}


class Mixers(Row):
    """Which layers are linear, and the sizes of those; newer keys override the older."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers = known["layers"]
        group = fields.integer("layer_group_size") if fields.stated("layer_group_size") else 6
        usual = [LINEAR if (n + 1) % group else FULL for n in range(layers)]
        kinds = fields.each_layer("layer_types", layers, (LINEAR, FULL)) or usual
        found: Settings = {"linear": tuple(kind == LINEAR for kind in kinds)}
        older = {"linear_head": ("head_dim", 128), "conv": ("short_conv_kernel_size", 4)}
        newer = {"linear_head": "linear_head_dim", "conv": "linear_conv_kernel_dim"}
        for name, (key, usual_size) in older.items():
            size = fields.integer(key) if fields.stated(key) else usual_size
            found[name] = fields.integer(newer[name]) if fields.stated(newer[name]) else size
        key = "linear_num_heads"
        found["linear_heads"] = fields.integer(key) if fields.stated(key) else known["heads"]
        bounded = fields.flag("kda_safe_gate") if fields.stated("kda_safe_gate") else True
        lowest = fields.get("kda_lower_bound") if fields.stated("kda_lower_bound") else -5.0
        if not isinstance(lowest, int | float) or isinstance(lowest, bool) or not lowest < 0:
            raise fields.refusal("kda_lower_bound", f"should be below 0, but is {lowest}")
        return found | {"bound": -float(lowest) if bounded else None}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {
            "layer_types": [LINEAR if linear else FULL for linear in known["linear"]],
            "head_dim": known["linear_head"],
            "linear_head_dim": known["linear_head"],
            "linear_num_heads": known["linear_heads"],
            "linear_conv_kernel_dim": known["conv"],
            "kda_safe_gate": known["bound"] is not None,
            "kda_lower_bound": -(known["bound"] or 5.0),
        }


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    delta = mixer(
        "kda",
        heads=known["linear_heads"],
        key_size=known["linear_head"],
        conv=known["conv"],
        norm=Norm("rms", known["eps"]),
        direct=True,
        bound=known["bound"],
    )
    latent = deepseek_v3.latent(known, gated=True)
    mixers = tuple(delta if linear else latent for linear in known["linear"])
    return decoders.decoder(known | {"kv_heads": known["heads"], "bias": False, "mixers": mixers})


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    known = kimi_linear.settings(config) | {"bound": 5.0, "sharper": 1.0, "rope": None}
    for block in config.blocks:
        of = block.attention
        if is_linear(block):
            known["bound"] = of.bound
        else:
            size = of.key_size + of.rope_dim
            known |= {"rope": of.position, "sharper": 1.0 if of.scale is None else of.scale * size**0.5}
    return known


FAMILY = deepseek_v3.FAMILY.but(
    "bailing_hybrid",
    "BailingHybridForCausalLM",
    hf=(
        *naming.renamed(
            naming.HF_DECODER, ("model.embed_tokens.", "model.word_embeddings."), without=("self_attn",)
        ),
        *naming.of_layers(
            (
                *naming.renamed(
                    deepseek_v3.HF_LATENT,
                    (".self_attn.o_proj.", ".self_attn.dense."),
                    (".self_attn.", ".attention."),
                ),
                *naming.weights((f"{THEIRS}.g_proj", f"{OURS}.gate")),
            ),
            is_latent,
        ),
        *naming.of_layers(
            (
                *naming.weights(
                    (f"{THEIRS}.q_proj", f"{OURS}.query"),
                    (f"{THEIRS}.k_proj", f"{OURS}.key"),
                    (f"{THEIRS}.v_proj", f"{OURS}.value"),
                    (f"{THEIRS}.b_proj", f"{OURS}.beta"),
                    (f"{THEIRS}.f_proj", f"{OURS}.forget"),
                    (f"{THEIRS}.g_proj", f"{OURS}.gate"),
                    (f"{THEIRS}.o_norm", f"{OURS}.norm"),
                    (f"{THEIRS}.dense", f"{OURS}.out"),
                ),
                *(
                    Rule(f"{THEIRS}.{name[0]}_conv1d.weight", f"{OURS}.conv.{name}.weight", kernel)
                    for name in ("query", "key", "value")
                ),
                Rule(f"{THEIRS}.A_log", f"{OURS}.decay.A_log", same),
                Rule(f"{THEIRS}.dt_bias", f"{OURS}.decay.dt_bias", same),
            ),
            is_linear,
        ),
        *naming.renamed(naming.HF_DEEPSEEK_EXPERTS, ("gate.e_score_correction_bias", "gate.expert_bias")),
    ),
    gguf=(),
    gguf_joined=(),
    rows=(
        Field("layers", "num_hidden_layers", None, LAYER_COUNT),
        Field("vocab", "vocab_size", None),
        Field("width", "hidden_size", None),
        Field("context", "model_max_length", None, alias="max_position_embeddings"),
        Field("heads", "num_attention_heads", None),
        Field("eps", "rms_norm_eps", None, NUMBER),
        Field("hidden", "intermediate_size", None),
        Field("key_size", "qk_nope_head_dim", None),
        Field("head_size", "qk_rope_head_dim", None),
        Field("value_size", "v_head_dim", None),
        Field("latent", "kv_lora_rank", None),
        Field("query_latent", "q_lora_rank", None, deepseek_v3.LATENT_OR_NONE),
        Rope(interleaved=True),
        Field("tied", "tie_word_embeddings", None, FLAG),
        Field("experts", "num_experts", None, rows.TOP_K, alias="num_local_experts"),
        Field("top_k", "num_experts_per_token", None, rows.TOP_K, alias="num_experts_per_tok"),
        Field("expert_hidden", "moe_intermediate_size", None),
        kimi_linear.SharedExperts(),
        Field("groups", "num_expert_group", None, alias="n_group"),
        Field("top_groups", "topk_group", None),
        Field("normalised", "moe_renormalize", None, FLAG, alias="norm_topk_prob"),
        Field("routed_scale", "routed_scaling_factor", None, NUMBER),
        Mixers(),
        rows.MLPTypes("first_k_dense_replace", 2),
        KeyValueHeads(),
        Only("hidden_act", None, ("silu",), "another activation after the convolutions"),
        Only("attention_bias", None, (False,), "a bias in latent attention"),
        *rows.CAUSAL,
    ),
    build=decoder,
    describe=settings,
    folded=None,
    unfolded=None,
    defaults={"vocab": 157_184, "width": 2560, "layers": 42, "heads": 32, "eps": 1e-6, "hidden": 6144}
    | {"context": 262_144, "experts": 512, "expert_hidden": 768, "tied": False, "rope_base": 6e6}
    | {"query_latent": None, "shared": 1},
    nulls={"query_latent": None},
    fixed={"activation": "silu", "interleaved": True},
    mixers=("kda", "mla"),
    harmless=(
        "num_nextn_predict_layers",
        "num_mtp_layers",
        *deepseek_v3.FAMILY.harmless,
        "mtp_loss_scaling_factor",
    ),
    instead=None,
    modules=(
        ("model.word_embeddings.", "model.embed_tokens."),
        (".attention.dense.", ".self_attn.o_proj."),
        (".attention.f_proj.", ".self_attn.forget_gate.f_proj."),
        (".attention.", ".self_attn."),
    ),
)
