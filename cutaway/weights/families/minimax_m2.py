"""MiniMax-M2 (2025): half of each head rotated, norms over all queries and keys, sigmoid-scored experts."""

from cutaway.weights import naming, rotary, rows
from cutaway.weights.families import mixtral
from cutaway.weights.family import Family, Field, Only, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

ALIASES = ("minimax-m2",)


class Rope(rotary.Rope):
    """An older config says how many dimensions rotate."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        rope_dim = fields.integer("rotary_dim", None)
        part = self.part if rope_dim is None else rope_dim / known["head_size"]
        return rotary.Rope.read(Rope(part=part), fields, known, own)


FAMILY = mixtral.FAMILY.but(
    "minimax_m2",
    "MiniMaxM2ForCausalLM",
    hf=(
        *mixtral.FAMILY.hf,
        *naming.HF_QK_NORM,
        Rule("model.layers.{n}.block_sparse_moe.e_score_correction_bias", "blocks.{n}.mlp.choice_bias", same),
    ),
    gguf=(*naming.GGUF_PLAIN, *naming.GGUF_QK_NORM, *naming.GGUF_EXPERTS, *naming.GGUF_CHOICE_BIAS),
    architecture="minimax-m2",
    rows=(
        *rows.replaced(rows.SIZES, Rope(part=1.0)),
        *rows.experts(
            "num_local_experts", ("intermediate_size", "expert_feed_forward_length"), "num_experts"
        )[:3],
        Field("hidden", None, "feed_forward_length", missing=None),
        rows.SigmoidScores(),
        Only(None, "expert_weights_norm", (True,), "weighing experts otherwise"),
        Only(None, "expert_weights_scale", (1.0,), "scaling the experts' outputs"),
        Only("scoring_func", None, ("sigmoid",), "another score of experts"),
        Only("use_routing_bias", None, (True,), "a choice without a bias"),
        Only("shared_intermediate_size", None, (0,), "a shared expert"),
        Only("use_qk_norm", None, (True,), "queries and keys that are not normed"),
        Only("qk_norm_type", None, ("per_layer",), "another norm of queries and keys"),
    ),
    defaults={"kv_heads": 8, "head_size": 128, "context": 196608, "eps": 1e-6, "rope_base": 5e6}
    | {"experts": 256, "top_k": 8},
    fixed={"qk_norm": True, "qk_norm_over": "width", **rows.SIGMOID, "group_of_two": False},
    gguf_fixed={"tied": False},  # llama.cpp asks for a head of its own
    harmless=("attn_type_list", "use_mtp", "num_mtp_modules", "mtp_transformer_layers"),
)
