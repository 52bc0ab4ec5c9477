"""Command A+ (2026): Command A's block with a mixture of experts, after dense layers; norms of two kinds."""

from dataclasses import dataclass

from cutaway.errors import UserError
from cutaway.model.config import Decoder, Encoder
from cutaway.position import rope
from cutaway.weights import decoders, naming, rotary, rows
from cutaway.weights.families import cohere
from cutaway.weights.family import Entries, Family, Field, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rows import FULL, SLIDING

AVERAGE = 0.5  # of what the experts and the shared one output
PATTERN, DENSE_PATTERN = "sliding_window_pattern", "prefix_dense_sliding_window_pattern"


class Norms(Row):
    """Root-mean-square norms where their eps is there, else layer norms without biases."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        given = fields.get("rms_norm_eps") is not None
        eps = rows.FRACTION.read(fields, "rms_norm_eps") if given else None
        usual = fields.number("layer_norm_eps") if fields.stated("layer_norm_eps") else 1e-5
        return {"eps": eps or usual, "rms": eps is not None}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"rms_norm_eps" if known["rms"] else "layer_norm_eps": known["eps"]}


@dataclass(frozen=True)
class Rope(rotary.Rope):
    """Transformers reads ``rope_parameters`` alone, without scalings that depend on a length."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        fields.only("rope_scaling", (None,), "a scaling outside rope_parameters")
        given = fields.section("rope_parameters")
        if fields.has("rope_parameters") and not (given and given.data):
            raise fields.refusal("rope_parameters", "has no entries: remove the key, or give it some")
        if given is not None:
            given.only("rope_type", ("default", "linear"), "another scaling")
        return super().read(fields, known, own)

    def write(self, known: Settings, gguf: bool) -> Entries:
        position = known["rope"] or rope.Config(2)
        return {"rope_theta": position.base, "rope_parameters": rotary.hf_section(position)}


class Layers(Row):
    """Which layers are dense, which are local, and which have positions.

    The first ones may be dense, with a pattern of their own: where it is 1 they have positions though they
    are global, as local layers have.
    """

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers, first = known["layers"], fields.integer("first_k_dense_replace", 0, low=0)
        pattern, dense_pattern = (
            fields.integer(key) if fields.stated(key) else usual
            for key, usual in ((PATTERN, 4), (DENSE_PATTERN, 1))
        )
        mlps = fields.each_layer("mlp_layer_types", layers, ("dense", "sparse"))
        kinds = fields.each_layer("layer_types", layers, (SLIDING, FULL))
        usual = [*rows.every(dense_pattern, min(first, layers)), *rows.every(pattern, max(layers - first, 0))]
        is_local = usual if kinds is None else [kind == SLIDING for kind in kinds]
        dense = [n < first for n in range(layers)] if mlps is None else [mlp == "dense" for mlp in mlps]
        window = fields.integer("sliding_window") if fields.stated("sliding_window") else 4096
        forced = [each and dense_pattern == 1 for each in dense]
        return {
            "dense": tuple(dense),
            "windows": tuple(window if each else None for each in is_local),
            "nope": tuple(not near and not force for near, force in zip(is_local, forced, strict=True)),
        }

    def write(self, known: Settings, gguf: bool) -> Entries:
        each = list(zip(known["dense"], known["windows"], known["nope"], strict=True))
        bare = any(dense and window is None and nope for dense, window, nope in each)
        return {
            "mlp_layer_types": ["dense" if dense else "sparse" for dense, _, _ in each],
            "layer_types": [FULL if window is None else SLIDING for _, window, _ in each],
            "sliding_window": next(filter(None, known["windows"]), 4096),
            DENSE_PATTERN: 2 if bare else 1,
        }


class Experts(Row):
    """How experts are scored, and how the shared ones join them."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        for key in ("expert_selection_fn", "shared_expert_combination_strategy"):
            fields.stated(key)
        word = fields.choice("expert_selection_fn", {"softmax": "softmax", "sigmoid": "sigmoid"}, "softmax")
        normalised = fields.flag("norm_topk_prob") if fields.stated("norm_topk_prob") else True
        count = fields.integer("num_shared_experts", 0, low=0)
        average = fields.choice(
            "shared_expert_combination_strategy", {"average": True, "sum": False}, "average"
        )
        return {
            "score": word,
            "normalised": normalised or word == "softmax",  # softmax of those chosen alone
            "shared": count * known["expert_hidden"],
            "out_scale": AVERAGE if average and count else 1.0,
        }

    def write(self, known: Settings, gguf: bool) -> Entries:
        if known["out_scale"] not in (1.0, AVERAGE):
            raise UserError(f"its experts' outputs are multiplied by {known['out_scale']}")
        return {
            "expert_selection_fn": known["score"],
            "norm_topk_prob": known["normalised"],
            "num_shared_experts": known["shared"] // known["expert_hidden"],
            "shared_expert_combination_strategy": "average" if known["out_scale"] == AVERAGE else "sum",
        }


def hidden(known: Settings) -> int:
    """The width of a dense layer that is not stated."""
    return known["expert_hidden"]


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    return decoders.settings(config) | {"rms": config.blocks[0].norm.kind == "rms"}


FAMILY = cohere.FAMILY.but(
    "cohere2_moe",
    "Cohere2MoeForCausalLM",
    hf=(*naming.HF_DECODER, *naming.HF_DEEPSEEK_EXPERTS),
    gguf=(),
    rows=(
        *rows.replaced(rows.SIZES, Rope(interleaved=True), without=("eps",)),
        Norms(),
        *rows.experts("num_experts", ("intermediate_size", "expert_feed_forward_length"))[:3],
        Field("hidden", "prefix_dense_intermediate_size", None),
        *rows.biases("attention_bias"),
        cohere.LOGIT_SCALE,
        Experts(),
        Layers(),
    ),
    describe=settings,
    defaults={"head_size": 128, "rope_base": 1e4, "experts": 8, "top_k": 2, "hidden": hidden},
    nulls={"hidden": hidden},
    forget=("qk_norm_over", "qk_norm", "head_size"),
    fixed={"norm": lambda known: "rms" if known["rms"] else "layer"},
    sparse=True,
)
