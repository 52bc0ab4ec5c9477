"""ERNIE 4.5 MoE (2025): neighbouring pairs; softmax scores, with a bias for the choice of experts."""

from cutaway.weights import naming, rows
from cutaway.weights.families import ernie4_5
from cutaway.weights.family import Entries, Family, Field, Only, Row, Settings, shared
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import flat


def dense_layers(layers: int, first: int, last: int, step: int) -> tuple[bool, ...]:
    """Which layers are dense."""
    return tuple((n + 1) % step != 0 or not first <= n <= last for n in range(layers))


class Layers(Row):
    """Layers from one to another are sparse, every few of them."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers = known["layers"]
        if fields.gguf:
            first, step = fields.integer("leading_dense_block_count", 0, low=0), 1
            fields.only("interleave_moe_layer_step", (1,), "dense layers between sparse ones")
            last = layers - 1
        else:
            first, last, step = (
                _number(fields, f"moe_layer_{name}", usual)
                for name, usual in (("start_index", 1), ("end_index", -1), ("interval", 1))
            )
            if step < 1:
                raise fields.refusal("moe_layer_interval", "should be 1 or more")
            last = layers - 1 if last == -1 else last
        return {"dense": dense_layers(layers, first, last, step)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        layers, sparse = known["layers"], [n for n, each in enumerate(known["dense"]) if not each]
        first, last = sparse[0], sparse[-1]
        steps = (n for n in range(1, layers) if dense_layers(layers, first, last, n) == known["dense"])
        step = next(steps, 1)
        if gguf:
            return {"leading_dense_block_count": first, "interleave_moe_layer_step": step}
        return {"moe_layer_start_index": first, "moe_layer_end_index": last, "moe_layer_interval": step}


def _number(fields: Fields, key: str, usual: int) -> int:
    return fields.integer(key, low=-1) if fields.stated(key) else usual


ALIASES = ("ernie4_5-moe",)

FAMILY = ernie4_5.FAMILY.but(
    "ernie4_5_moe",
    "Ernie4_5_MoeForCausalLM",
    hf=(
        *naming.renamed(naming.HF_DEEPSEEK_EXPERTS, without=("e_score",)),
        Rule("model.layers.{n}.mlp.moe_statics.e_score_correction_bias", "blocks.{n}.mlp.choice_bias", flat),
        *naming.HF_DECODER,
    ),
    gguf=(
        *naming.GGUF_PLAIN,
        *naming.GGUF_DEEPSEEK_EXPERTS,
    ),
    rows=(
        *rows.turning(rows.SIZES, interleaved=True),
        *rows.DENSE[:1],
        Field("experts", "moe_num_experts", "expert_count", rows.TOP_K, alias="num_experts"),
        Field("top_k", "moe_k", "expert_used_count", rows.TOP_K, alias="num_experts_per_tok"),
        Field("expert_hidden", *rows.EXPERT_HIDDEN, each_layer=True),
        *rows.EXPERTS_IN_GGUF,
        rows.SharedWidth("moe_num_shared_experts"),
        Layers(),
        Only("use_bias", None, (False, None), "biases of this mixture of experts"),
        Only("moe_norm_min", None, (1e-12,), "another least sum of weights"),
    ),
    defaults={
        "kv_heads": 4,
        "head_size": shared,
        "experts": 64,
        "top_k": 6,
        "expert_hidden": 1536,
        "shared": 2,
    },
    fixed={"normalised": True, "choice_bias": True, "bias": False, "out_bias": False, "mlp_bias": False},
    sparse=True,
    architecture="ernie4_5-moe",
    harmless=("moe_capacity", "moe_gate", "moe_gate_act", "moe_use_aux_free", "num_nextn_predict_layers"),
    ignored_hf=("model.mtp_*", "model.layers.{layers}.*"),
)
