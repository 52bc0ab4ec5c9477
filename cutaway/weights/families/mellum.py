"""Mellum 2 (JetBrains, 2026): Qwen 3's mixture of experts with local layers, which rotate in another way."""

from cutaway.layers.config import MoE
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of
from cutaway.weights import layer_ropes, mtp, rows
from cutaway.weights.families import qwen3_moe
from cutaway.weights.family import FLAG, Field, Only


def local_block(config: Decoder) -> Block | None:
    """The block of the last sparse layer with a window, as the head that predicts one token more has it."""
    local = [block for block in config.blocks if kind_of(block.attention) == "local"]
    return next((block for block in reversed(local) if isinstance(block.mlp, MoE)), None)


FAMILY = qwen3_moe.FAMILY.but(
    "mellum",
    "MellumForCausalLM",
    hf=mtp.apart(qwen3_moe.FAMILY.hf),
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
        mtp.Heads("num_mtp_layers", "num_nextn_predict_layers", usual=0),
        Only("mtp_layer_types", None, (None, [rows.SLIDING]), "a global layer that predicts further tokens"),
        Only("mtp_mlp_layer_types", None, (None, ["sparse"]), "a dense layer that predicts further tokens"),
    ),
    defaults={"head_size": 128, "context": 131072, "window": 1024}
    | {"experts": 64, "top_k": 8, "expert_hidden": 896, "normalised": True},
    nulls={"window": None},
    mtp_block=local_block,
    ignored_hf=("mtp.*", "model.mtp.*", "model.layers.{layers}.*"),
)
