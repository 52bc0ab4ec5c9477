"""K-EXAONE (2601.01739): EXAONE 4's attention behind a norm, and DeepSeek-V3's mixture of experts."""

from cutaway.weights import naming, rows
from cutaway.weights.families import exaone4, llama
from cutaway.weights.family import FLAG, NUMBER, Entries, Family, Field, Settings
from cutaway.weights.fields import Fields

ALIASES = ("exaone-moe",)


class SharedExperts(rows.SharedExperts):
    """GGUF has their number and their joint width."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        found = super().read(fields, known, own)
        if fields.gguf:
            fields.only("expert_shared_feed_forward_length", (found["shared"],), "another shared expert")
        return found

    def write(self, known: Settings, gguf: bool) -> Entries:
        own = {"expert_shared_feed_forward_length": known["shared"]} if gguf else {}
        return super().write(known, gguf) | own


class LayerTypes(exaone4.LayerTypes):
    """llama.cpp asks for windows in three layers of four."""

    def write(self, known: Settings, gguf: bool) -> Entries:
        return rows.LayerTypes(4, key=None).write(known, gguf) if gguf else super().write(known, gguf)


FAMILY = llama.FAMILY.but(
    "exaone_moe",
    "ExaoneMoeForCausalLM",
    hf=(
        *naming.HF_DECODER,
        *naming.HF_QK_NORM,
        *naming.renamed(naming.HF_DEEPSEEK_EXPERTS, ("gate.e_score", "e_score")),
    ),
    gguf=(
        *naming.GGUF_PLAIN,
        *naming.GGUF_QK_NORM,
        *naming.GGUF_DEEPSEEK_EXPERTS,
    ),
    architecture="exaone-moe",
    rows=(
        *rows.SIZES,
        *rows.DENSE[:1],
        *rows.experts("num_experts", rows.EXPERT_HIDDEN)[:3],
        *rows.GROUPS[:2],
        rows.SigmoidScores(),
        rows.NO_GROUPS,
        Field("normalised", "norm_topk_prob", "expert_weights_norm", FLAG, missing=False),
        Field("routed_scale", "routed_scaling_factor", "expert_weights_scale", NUMBER, missing=1.0),
        SharedExperts("num_shared_experts"),
        rows.MLPTypes("first_k_dense_replace"),
        LayerTypes(pattern=4, key=None),
    ),
    defaults={"kv_heads": 32, "eps": 1e-5, "window": 4096, "experts": 64, "top_k": 8, "expert_hidden": 1024}
    | {"shared": 1, "normalised": True, "routed_scale": 2.5, "groups": 1, "top_groups": 1},
    forget=("kv_heads",),
    fixed={"qk_norm": True, "nope": exaone4.nope, "bias": False, "out_bias": False, **rows.SIGMOID},
    gguf_fixed={"groups": 1, "top_groups": 1},
    sparse=True,
    harmless=("num_nextn_predict_layers", "num_mtp_layers"),
    ignored_hf=("model.layers.{layers}.*", "mtp.*"),
)
