"""Mixtral (2401.04088): Mistral's block with a mixture of experts. In GGUF it is a llama with experts."""

from cutaway.weights import naming, rows
from cutaway.weights.families import llama, mistral
from cutaway.weights.family import Field, Only

ALIASES = ("llama",)

FAMILY = mistral.FAMILY.but(
    "mixtral",
    "MixtralForCausalLM",
    modules=((".block_sparse_moe.", ".mlp."),),
    architecture="llama",
    hf=(
        *naming.HF_DECODER,
        *naming.weights(
            ("model.layers.{n}.block_sparse_moe.gate", "blocks.{n}.mlp.router"),
            ("model.layers.{n}.block_sparse_moe.experts.{e}.w1", "blocks.{n}.mlp.experts.{e}.gate"),
            ("model.layers.{n}.block_sparse_moe.experts.{e}.w3", "blocks.{n}.mlp.experts.{e}.up"),
            ("model.layers.{n}.block_sparse_moe.experts.{e}.w2", "blocks.{n}.mlp.experts.{e}.down"),
        ),
    ),
    gguf=(*llama.GGUF, *naming.GGUF_EXPERTS),
    rows=(
        *rows.SIZES,
        *rows.experts("num_local_experts", ("intermediate_size", "feed_forward_length"), "num_experts"),
        Only(None, "expert_weights_norm", (True,), "weighing experts otherwise"),
        Field("window", "sliding_window", None),
    ),
    defaults={"experts": 8, "top_k": 2, "window": None, "eps": 1e-5, "rope_base": 1e6},
    fixed={"normalised": True},
    sparse=True,
)
