"""LFM2 MoE (2025): LFM2 with sigmoid-scored experts after the first layers, chosen with a bias by choice."""

from cutaway.weights import naming, rows
from cutaway.weights.families import lfm2
from cutaway.weights.family import FLAG, NUMBER, Field, Only
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

FEED, EXPERT = "model.layers.{n}.feed_forward", "blocks.{n}.mlp.experts.{e}"

FAMILY = lfm2.FAMILY.but(
    "lfm2_moe",
    "Lfm2MoeForCausalLM",
    hf=(
        *lfm2.HF,
        Rule(f"{FEED}.expert_bias", "blocks.{n}.mlp.choice_bias", same),
        *naming.weights(
            (f"{FEED}.gate", "blocks.{n}.mlp.router"),
            (f"{FEED}.experts.{{e}}.w1", f"{EXPERT}.gate"),
            (f"{FEED}.experts.{{e}}.w3", f"{EXPERT}.up"),
            (f"{FEED}.experts.{{e}}.w2", f"{EXPERT}.down"),
        ),
    ),
    gguf=(*lfm2.GGUF, *naming.GGUF_EXPERTS, *naming.GGUF_CHOICE_BIAS),
    rows=(
        *rows.replaced(lfm2.FAMILY.rows, rows.DENSE[0]),
        *rows.experts("num_experts", rows.EXPERT_HIDDEN)[:3],
        rows.SigmoidScores(),
        Only(None, "expert_weights_scale", (1.0,), "scaling the experts' outputs"),
        Field("normalised", "norm_topk_prob", None, FLAG),
        Field("routed_scale", "routed_scaling_factor", None, NUMBER),
        Field("choice_bias", "use_expert_bias", None, FLAG),
        rows.FirstDense("num_dense_layers", 2),
    ),
    defaults={"hidden": 7168, "experts": 32, "top_k": 4, "expert_hidden": 1792, "normalised": True}
    | {"routed_scale": 1.0, "choice_bias": True},
    fixed={"score": "sigmoid"},  # and SiLU, whatever hidden_act says
    gguf_fixed={"normalised": True, "routed_scale": 1.0, "choice_bias": True},
    architecture="lfm2moe",
    sparse=True,
)
