"""Aria's text (2410.05993): llama's attention, and a mixture of experts in two tensors a layer."""

from cutaway.weights import naming, rows
from cutaway.weights.families import granitemoe, llama
from cutaway.weights.family import Field, Only
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import chain, each, same, split, transpose

MOE = "model.layers.{n}.mlp"

FAMILY = llama.FAMILY.but(
    "aria_text",
    "AriaTextForCausalLM",
    modules=(("experts.fc1.weight", "experts.gate_up_proj"), ("experts.fc2.weight", "experts.down_proj")),
    hf=(
        *naming.HF_DECODER,
        Rule(f"{MOE}.router.weight", "blocks.{n}.mlp.router.weight", same),
        Rule(f"{MOE}.experts.fc1.weight", granitemoe.BOTH, each(chain(transpose, split), 2)),
        Rule(f"{MOE}.experts.fc2.weight", "blocks.{n}.mlp.experts.{e}.down.weight", each(transpose)),
        *naming.HF_DEEPSEEK_EXPERTS[-3:],
    ),
    gguf=(),
    rows=(
        *rows.replaced(rows.SIZES, without=("activation",)),
        Field("experts", "moe_num_experts", None, rows.TOP_K),
        Field("top_k", "moe_topk", None, rows.TOP_K),
        Field("expert_hidden", "intermediate_size", None),
        rows.SharedExperts("moe_num_shared_experts"),
        *rows.biases("attention_bias"),
        Only("hidden_act", None, ("silu",), "another activation"),
        Only("mlp_bias", None, (False,), "biases of experts"),
    ),
    defaults={"experts": 8, "top_k": 2, "shared": 2},
    fixed={"normalised": True, "activation": "silu"},
    sparse=True,
)
