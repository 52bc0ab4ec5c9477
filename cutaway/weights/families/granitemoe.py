"""Granite 3 MoE (2024): Granite with a mixture of experts, all of a layer in two tensors."""

from cutaway.weights import naming, rows
from cutaway.weights.families import granite, llama
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import each, same, split, stack

SHARED = "expert_shared_feed_forward_length"  # of GGUF
BOTH = ("blocks.{n}.mlp.experts.{e}.gate.weight", "blocks.{n}.mlp.experts.{e}.up.weight")

FAMILY = granite.FAMILY.but(
    "granitemoe",
    "GraniteMoeForCausalLM",
    modules=(
        ("block_sparse_moe.input_linear.weight", "block_sparse_moe.experts.gate_up_proj"),
        ("block_sparse_moe.output_linear.weight", "block_sparse_moe.experts.down_proj"),
        ("block_sparse_moe.router.layer.", "block_sparse_moe.router."),
    ),
    hf=(
        *naming.HF_DECODER,
        Rule("model.layers.{n}.block_sparse_moe.router.layer.weight", "blocks.{n}.mlp.router.weight", same),
        Rule("model.layers.{n}.block_sparse_moe.input_linear.weight", BOTH, each(split, 2)),
        Rule(
            "model.layers.{n}.block_sparse_moe.output_linear.weight",
            "blocks.{n}.mlp.experts.{e}.down.weight",
            stack,
        ),
    ),
    gguf=(*llama.GGUF, *naming.GGUF_EXPERTS),
    rows=(
        *rows.SIZES,
        *rows.experts("num_local_experts", ("intermediate_size", "feed_forward_length")),
        *rows.biases("attention_bias"),
        *granite.MULTIPLIERS,
    ),
    defaults={"experts": 8, "top_k": 2},
    fixed={"normalised": True},
    sparse=True,
    instead=lambda fields: "granitemoeshared" if fields.has(f"granitemoe.{SHARED}") else None,
)
