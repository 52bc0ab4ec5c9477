"""Laguna (Poolside, 2026): gates that are softplus, heads by layer, two kinds of rotation, sigmoid scores."""

from typing import Any

from cutaway.model.config import Decoder, Encoder
from cutaway.weights import decoders, layer_ropes, naming, rows
from cutaway.weights.families import afmoe, llama
from cutaway.weights.family import NUMBER, Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import Fields


class Heads(Row):
    """Each layer may have another number of query heads."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        counts, layers = fields.get("num_attention_heads_per_layer"), known["layers"]
        if counts is None:
            return {"heads_of_layers": (known["heads"],) * layers}
        if not isinstance(counts, list) or len(counts) != layers or any(type(n) is not int for n in counts):
            raise fields.refusal("num_attention_heads_per_layer", f"should list {layers} whole numbers")
        return {"heads_of_layers": tuple(counts)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"num_attention_heads_per_layer": list(known["heads_of_layers"])}


class Gating(Row):
    """A gate for each head, or for each number."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        fields.only("gating", (True, "per-head", "per-element"), "another gate")
        return {"per_head": fields.get("gating") != "per-element"}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"gating": "per-head" if known["per_head"] else "per-element"}


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    return afmoe.decoder(known, softplus=True, per_head=known["per_head"])


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    heads: Any = [block.attention for block in config.blocks]
    known = {"heads_of_layers": tuple(of.heads for of in heads), "per_head": heads[0].per_head}
    return decoders.settings(config) | known


FAMILY = llama.FAMILY.but(
    "laguna",
    "LagunaForCausalLM",
    modules=((".mlp.shared_expert.", ".mlp.shared_experts."),),
    hf=(
        *naming.HF_DECODER,
        *naming.HF_QK_NORM,
        *naming.weights(("model.layers.{n}.self_attn.g_proj", "blocks.{n}.attention.gate")),
        *naming.renamed(
            naming.HF_DEEPSEEK_EXPERTS,
            ("mlp.gate.e_score_correction_bias", "mlp.experts.e_score_correction_bias"),
            ("shared_experts", "shared_expert"),
        ),
    ),
    gguf=(),
    rows=(
        *rows.replaced(rows.SIZES, without=("rope",)),
        *rows.DENSE[:1],
        *rows.experts("num_experts", rows.EXPERT_HIDDEN)[:3],
        Field("shared", "shared_expert_intermediate_size", None),
        Field("routed_scale", "moe_routed_scaling_factor", None, NUMBER),
        rows.MLPTypes(),
        rows.LayerTypes(1, key=None, usual=lambda layers: [False] * layers),
        layer_ropes.RopeOfKinds(part=1.0, bases=(500_000.0, 10_000.0), parts=(0.5, 1.0)),
        Heads(),
        Gating(),
        Only("attention_bias", None, (False,), "biases of gated attention"),
        Only("moe_apply_router_weight_on_input", None, (False,), "experts that weigh what they read"),
        Only("moe_router_logit_softcapping", None, (0.0,), "a bound on the router's logits"),
        Only("norm_topk_prob", None, (True,), "weighing experts otherwise"),
    ),
    build=decoder,
    describe=settings,
    defaults={"kv_heads": 8, "head_size": 128, "context": 131072, "window": 512}
    | {"experts": 256, "top_k": 8, "expert_hidden": 512, "shared": 512, "routed_scale": 1.0},
    fixed={"normalised": True, **rows.SIGMOID, "group_of_two": False},
    forget=("kv_heads", "head_size"),
    sparse=True,
    mixers=("gated", "gated_local"),
)
