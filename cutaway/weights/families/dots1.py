"""dots.llm1 (2506.05767): Qwen 3's block with DeepSeek-V3's mixture of experts."""

from dataclasses import replace

from cutaway.weights import naming, rows
from cutaway.weights.families import qwen3
from cutaway.weights.family import FLAG, NUMBER, Family, Field, Settings, shared
from cutaway.weights.fields import Fields


class LayerTypes(rows.LayerTypes):
    """Without a list the layers from one on are local."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        first = fields.integer("max_window_layers", low=0) if fields.stated("max_window_layers") else 62
        of = replace(self, usual=lambda layers: [n >= first for n in range(layers)])
        return super(LayerTypes, of).read(fields, known, own)


FAMILY = qwen3.FAMILY.but(
    "dots1",
    "Dots1ForCausalLM",
    hf=(*qwen3.FAMILY.hf, *naming.HF_DEEPSEEK_EXPERTS),
    gguf=(
        *qwen3.FAMILY.gguf,
        *naming.GGUF_DEEPSEEK_EXPERTS,
    ),
    rows=(
        *rows.SIZES,
        *rows.DENSE[:1],
        *rows.experts("n_routed_experts", rows.EXPERT_HIDDEN, "num_local_experts")[:3],
        rows.SigmoidScores(),
        *rows.GROUPS[:2],
        rows.NO_GROUPS,
        Field("normalised", "norm_topk_prob", "expert_weights_norm", FLAG, missing=False),
        Field("routed_scale", "routed_scaling_factor", "expert_weights_scale", NUMBER, missing=1.0),
        rows.SharedExperts(),
        rows.FirstDense(usual=0),
        *rows.biases("attention_bias"),
        LayerTypes(1, key=None, in_gguf=False),
    ),
    defaults={"kv_heads": 32, "context": 2048, "window": 4096, "head_size": shared}
    | {"normalised": False, "groups": 1, "top_groups": 1, "routed_scale": 1.0},
    nulls={"window": None},
    fixed=rows.SIGMOID,
    gguf_fixed={"groups": 1, "top_groups": 1, "kv_heads": rows.same_heads},
    sparse=True,
)
