"""Mellum 2 (JetBrains, 2026): Qwen 3's mixture of experts with local layers, which rotate in another way."""

from cutaway.weights import layer_ropes, rows
from cutaway.weights.families import qwen3_moe
from cutaway.weights.family import FLAG, Field

FAMILY = qwen3_moe.FAMILY.but(
    "mellum",
    "MellumForCausalLM",
    gguf=(),
    rows=(
        *rows.replaced(rows.SIZES, without=("rope",)),
        *rows.DENSE[:1],
        *rows.experts("num_local_experts", rows.EXPERT_HIDDEN, "num_experts"),
        Field("normalised", "norm_topk_prob", None, FLAG),
        rows.MLPTypes(usual=0),
        rows.LayerTypes(1, key=None, usual=lambda layers: [False] * layers),
        layer_ropes.RopeOfKinds(bases=(500_000.0, 10_000.0)),
        *rows.biases("attention_bias"),
    ),
    defaults={"head_size": 128, "context": 131072, "window": 1024}
    | {"experts": 64, "top_k": 8, "expert_hidden": 896, "normalised": True},
    nulls={"window": None},
    harmless=("num_mtp_layers", "num_nextn_predict_layers", "mtp_layer_types", "mtp_mlp_layer_types"),
    ignored_hf=("mtp.*", "model.mtp.*", "model.layers.{layers}.*"),
)
