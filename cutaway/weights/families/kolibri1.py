"""Kolibri 1 (2026): norms before and after each half, four local layers to one without positions, experts.

A token's experts are those with the highest logits, a bias added, and weigh by the sigmoid of theirs.
"""

from __future__ import annotations

from cutaway.weights import naming, rows
from cutaway.weights.families import exaone4, llama
from cutaway.weights.family import FLAG, Family, Field, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

LAYER = "model.layers.{n}"


class LayerTypes(exaone4.LayerTypes):
    """Configs have no pattern."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        data = {key: value for key, value in fields.data.items() if key != "sliding_window_pattern"}
        without = Fields(data, fields.where)
        found = super().read(without, known, own)
        fields.used |= without.used - {"sliding_window_pattern"}
        return found


FAMILY = llama.FAMILY.but(
    "kolibri1",
    "Kolibri1ForCausalLM",
    hf=(
        *(rule for rule in naming.HF_DECODER if ".mlp." not in rule.theirs),
        *naming.HF_QK_NORM,
        *naming.weights(
            (f"{LAYER}.post_attn_norm", "blocks.{n}.attention_post_norm"),
            (f"{LAYER}.post_ffn_norm", "blocks.{n}.mlp_post_norm"),
        ),
        *(rule for rule in naming.HF_DEEPSEEK_EXPERTS if "correction_bias" not in rule.theirs),
        Rule(f"{LAYER}.moe.router.expert_bias", "blocks.{n}.mlp.choice_bias", same),
    ),
    gguf=(),
    rows=(
        *rows.SIZES,
        Field("experts", "num_experts", None, rows.TOP_K, alias="num_local_experts"),
        Field("top_k", "num_experts_per_tok", None, rows.TOP_K),
        Field("expert_hidden", "moe_intermediate_size", None),
        Field("shared", "shared_expert_intermediate_size", None),
        Field("normalised", "norm_topk_prob", None, FLAG),
        LayerTypes(pattern=5, key=None),
    ),
    defaults={"vocab": 128_000, "width": 2560, "layers": 50, "heads": 48, "kv_heads": 4, "head_size": 128}
    | {"context": 262_144, "experts": 384, "top_k": 6, "expert_hidden": 512, "shared": 512, "window": 513}
    | {"normalised": False},
    forget=("head_size",),
    fixed={"nope": exaone4.nope, "qk_norm": True, "post_norm": True, "score": "sigmoid", "choice_bias": True}
    | {"by_logits": True, "bias": False, "out_bias": False},
    sparse=True,
    modules=(
        (".post_attn_norm.", ".post_self_attn_layernorm."),
        (".post_ffn_norm.", ".post_mlp_layernorm."),
    ),
)
