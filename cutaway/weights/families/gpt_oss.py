"""gpt-oss (2508.10925): sinks, every other layer local, biases everywhere, clamped SwiGLU experts.

Their weights are the softmax of the chosen ones' scores, which is all experts' with a sum of 1.
"""

import numpy as np

from cutaway.weights import naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import NUMBER, Entries, Field, Only, Settings
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import beside, chain, each, same, stack, transpose

ALIASES = ("gpt-oss",)

EXPERTS = "model.layers.{n}.mlp.experts"
OURS = "blocks.{n}.mlp.experts.{e}"

GATE_UP = (f"{OURS}.gate.weight", f"{OURS}.up.weight")
HF = (
    *naming.HF_DECODER,
    *naming.pairs(("model.layers.{n}.mlp.router", "blocks.{n}.mlp.router")),
    Rule("model.layers.{n}.self_attn.sinks", "blocks.{n}.attention.sinks", same),
    Rule(f"{EXPERTS}.gate_up_proj_bias", (f"{OURS}.gate.bias", f"{OURS}.up.bias"), each(beside(), 2)),
    Rule(f"{EXPERTS}.down_proj_bias", f"{OURS}.down.bias", stack),
)

GGUF = (
    *naming.GGUF_EMBEDDINGS,
    *naming.weights(
        ("blk.{n}.attn_norm", "blocks.{n}.attention_norm"),
        ("blk.{n}.post_attention_norm", "blocks.{n}.mlp_norm"),
    ),
    *naming.pairs(*naming.GGUF_QUERY_KEY, naming.GGUF_VALUE, naming.GGUF_OUT),
    Rule("blk.{n}.attn_sinks.weight", "blocks.{n}.attention.sinks", same),
    *naming.GGUF_EXPERTS,
    *naming.pairs(("blk.{n}.ffn_gate_inp", "blocks.{n}.mlp.router"), parts=("bias",)),
    *(
        Rule(f"blk.{{n}}.ffn_{name}_exps.bias", f"{OURS}.{name}.bias", stack)
        for name in ("gate", "up", "down")
    ),
)


class LayerTypes(rows.LayerTypes):
    """llama.cpp asks for a window though no layer has one."""

    def write(self, known: Settings, gguf: bool) -> Entries:
        entries = super().write(known, gguf)
        if gguf and not any(known["windows"]):
            entries |= {"attention.sliding_window": 128}
            entries["attention.sliding_window_pattern"] = np.zeros(known["layers"], bool)
        return entries


FAMILY = llama.FAMILY.but(
    "gpt_oss",
    "GptOssForCausalLM",
    hf=(
        *HF,
        Rule(f"{EXPERTS}.gate_up_proj", GATE_UP, each(chain(transpose, beside()), 2)),
        Rule(f"{EXPERTS}.down_proj", f"{OURS}.down.weight", each(transpose)),
    ),
    hf_mxfp4=(  # blocks are of rows, so these matrices are not transposed
        *HF,
        Rule(f"{EXPERTS}.gate_up_proj", GATE_UP, each(beside(), 2)),
        Rule(f"{EXPERTS}.down_proj", f"{OURS}.down.weight", stack),
    ),
    gguf=GGUF,
    rows=(
        *rows.replaced(rows.turning(rows.SIZES, required=True), without=("activation",)),
        *rows.experts(
            "num_local_experts", ("intermediate_size", "expert_feed_forward_length"), "num_experts"
        ),
        *rows.biases("attention_bias"),
        LayerTypes(pattern=2, key=None),
        Field("limit", "swiglu_limit", None, NUMBER),
        Only("hidden_act", None, ("silu",), "another activation"),
        Only("swiglu_alpha", None, (1.702,), "another alpha of the activation"),
    ),
    defaults={"kv_heads": 8, "head_size": 64, "context": 131072, "eps": 1e-5, "rope_base": 150000.0}
    | {"experts": 128, "top_k": 4, "bias": True, "out_bias": True, "window": 128, "limit": 7.0},
    forget=("kv_heads",),
    fixed={"activation": "gelu_sigmoid", "normalised": True, "sinks": True}
    | {"router_bias": True, "expert_bias": True},
    gguf_fixed={"activation": "gelu_sigmoid", "bias": True, "out_bias": True, "tied": False, "limit": 7.0},
    architecture="gpt-oss",
    sparse=True,
)
