"""DeepSeek-V2 (2405.04434): latent attention, and softmax-scored experts, whose best groups come first."""

from cutaway.weights import rows
from cutaway.weights.families import deepseek_v3
from cutaway.weights.family import NUMBER, Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import Fields


class Groups(Row):
    """The groups that experts are chosen from, in one of two methods."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            fields.only("expert_group_count", (0, 1), "groups that count for their best expert")
            return {"groups": 1, "top_groups": 1}
        method = fields.choice("topk_method", {"greedy": 1, "group_limited_greedy": 2}, "greedy")
        numbers = [fields.integer(key, None) for key in ("n_group", "topk_group")]
        if method == 1:
            return {"groups": 1, "top_groups": 1}
        return {"groups": numbers[0] or 1, "top_groups": numbers[1] or 1}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            return {}
        method = "greedy" if known["groups"] == 1 else "group_limited_greedy"
        return {"topk_method": method, "n_group": known["groups"], "topk_group": known["top_groups"]}


FAMILY = deepseek_v3.FAMILY.but(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    architecture="deepseek2",
    rows=(
        *rows.replaced(deepseek_v3.SIZES[1:], deepseek_v3.Rope()),
        *rows.DENSE[:1],
        *rows.experts("n_routed_experts", rows.EXPERT_HIDDEN, "num_experts")[:3],
        Only(None, "expert_gating_func", (1,), "another score of experts than softmax"),
        Only(None, "expert_weights_norm", (False,), "weights of experts that sum to 1"),
        Groups(),
        Field("routed_scale", "routed_scaling_factor", "expert_weights_scale", NUMBER, missing=1.0),
        rows.SharedExperts(),
        rows.FirstDense(usual=0),
        Only("attention_bias", None, (False,), "a bias in latent attention"),
        Only("mlp_bias", None, (False,), "a bias in the MLP"),
        Only("scoring_func", None, ("softmax",), "another score of experts"),
        Only("moe_layer_freq", None, (1,), "dense layers between sparse ones"),
    ),
    defaults={"context": 2048, "shared": 2, "routed_scale": 1.0, "experts": 64, "expert_hidden": 1407},
    forget=("score", "choice_bias", "group_of_two"),
    fixed={"normalised": False},
    harmless=(
        "num_nextn_predict_layers",
        "num_mtp_layers",
        *deepseek_v3.FAMILY.harmless,
        "norm_topk_prob",
    ),  # transformers reads no norm_topk_prob here
)
