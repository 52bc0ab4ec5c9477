"""Kimi Linear (2510.26692): three layers of Kimi Delta Attention to one of MLA without positions.

Experts are those of DeepSeek-V3. Its own config counts layers from one, under ``linear_attn_config``;
transformers writes lists of words.
"""

from dataclasses import replace

from cutaway.gguf import Packed
from cutaway.layers.config import Norm
from cutaway.model.config import Block, Decoder, Encoder, kind_of, mixer
from cutaway.weights import common
from cutaway.weights.common import FULL
from cutaway.weights.families import deepseek_v3, glm4_moe_lite
from cutaway.weights.family import FLAG, LAYER_COUNT, NUMBER, Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rules import How, Rule, kernel, same

LINEAR = "linear_attention"
KDA = {"linear_head": "head_dim", "linear_heads": "num_heads", "conv": "short_conv_kernel_size"}
THEIRS, OURS = "model.layers.{n}.self_attn", "blocks.{n}.attention"
MOE, MLP = "model.layers.{n}.block_sparse_moe", "blocks.{n}.mlp"
# A number for each head, [1 1 h 1], that is a vector of ours.
per_head = How(
    lambda packed, _: (Packed(packed.type, (packed.shape[2],), packed.data.reshape(-1)),),
    lambda parts, place: Packed(
        parts[0].type,
        (1, 1, *place.shapes[0], 1),
        parts[0].data.reshape(1, 1, place.shapes[0][0], -1),
    ),
    lambda place: (1, 1, *place.shapes[0], 1),
)


def is_linear(block: Block) -> bool:
    """Whether a layer's mixer is Kimi Delta Attention."""
    return kind_of(block.attention) == "kda"


def latent_alone(rule: Rule) -> Rule:
    """The rule, for layers of latent attention."""
    when = rule.when
    return replace(rule, when=lambda block: not is_linear(block) and (when is None or when(block)))


HF_KDA = tuple(
    replace(rule, when=is_linear)
    for rule in (
        *common.weights(
            (f"{THEIRS}.q_proj", f"{OURS}.query"),
            (f"{THEIRS}.k_proj", f"{OURS}.key"),
            (f"{THEIRS}.v_proj", f"{OURS}.value"),
            (f"{THEIRS}.b_proj", f"{OURS}.beta"),
            (f"{THEIRS}.f_a_proj", f"{OURS}.forget_down"),
            (f"{THEIRS}.f_b_proj", f"{OURS}.forget"),
            (f"{THEIRS}.g_a_proj", f"{OURS}.gate_down"),
            (f"{THEIRS}.g_b_proj", f"{OURS}.gate"),
            (f"{THEIRS}.o_norm", f"{OURS}.norm"),
            (f"{THEIRS}.o_proj", f"{OURS}.out"),
        ),
        *(
            Rule(f"{THEIRS}.{name[0]}_conv1d.weight", f"{OURS}.conv.{name}.weight", kernel)
            for name in ("query", "key", "value")
        ),
        Rule(f"{THEIRS}.A_log", f"{OURS}.decay.A_log", per_head),
        Rule(f"{THEIRS}.dt_bias", f"{OURS}.decay.dt_bias", same),
    )
)
HF_MOE = common.renamed(
    (
        *(rule for rule in common.HF_DECODER if ".mlp." in rule.theirs and "bias" not in rule.theirs),
        *common.HF_DEEPSEEK_EXPERTS,
    ),
    (".mlp.experts.{e}.gate_proj", ".mlp.experts.{e}.w1"),
    (".mlp.experts.{e}.up_proj", ".mlp.experts.{e}.w3"),
    (".mlp.experts.{e}.down_proj", ".mlp.experts.{e}.w2"),
    (".mlp.", ".block_sparse_moe."),
)


class Mixers(Row):
    """Which layers are linear, and the sizes of those."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers, older = known["layers"], fields.section("linear_attn_config")
        found: Settings = {}
        for name, key in KDA.items():
            newer = {"head_dim": "linear_head_dim", "num_heads": "linear_num_heads"}.get(
                key, "linear_conv_kernel_dim"
            )
            usual = fields.integer(newer) if fields.stated(newer) else own.defaults[name]
            found[name] = older.integer(key) if older and older.stated(key) else usual
        kinds = fields.each_layer("layer_types", layers, (LINEAR, FULL))
        linear = tuple(not (n and n % 4 == 0) for n in range(layers))
        if older:
            full, kda = (self._listed(older, f"{kind}_layers", layers) for kind in ("full_attn", "kda"))
            older.finish((), "Kimi's linear attention has")
            if full is not None and kda is not None and kinds is None:
                if sorted(full + kda) != list(range(1, layers + 1)):
                    raise older.refusal("kda_layers", "and full_attn_layers should name each layer once")
                linear = tuple(n + 1 in kda for n in range(layers))
        return found | {"linear": linear if kinds is None else tuple(kind == LINEAR for kind in kinds)}

    def _listed(self, older: Fields, key: str, layers: int) -> list[int] | None:
        return older.indices(key, layers + 1)

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {
            "layer_types": [LINEAR if linear else FULL for linear in known["linear"]],
            "linear_head_dim": known["linear_head"],
            "linear_num_heads": known["linear_heads"],
            "linear_conv_kernel_dim": known["conv"],
        }


class DenseLayers(glm4_moe_lite.DenseLayers):
    """A word for each layer, or how many of the first are dense."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        first = fields.integer("first_k_dense_replace", 1, low=0)
        if fields.get("mlp_layer_types") is not None:
            return super().read(fields, known, own)
        return {"dense": tuple(n < first for n in range(known["layers"]))}


class KeyValueHeads(Row):
    """As many key-value heads as heads, which all share one latent."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        fields.only("num_key_value_heads", (known["heads"], None), "fewer key-value heads than heads")
        return {}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"num_key_value_heads": known["heads"]}


class SharedExperts(Row):
    """Experts that all tokens pass, which are one MLP of their joint width."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        keys = [key for key in ("num_shared_experts", "n_shared_experts") if fields.stated(key)]
        counts = {fields.integer(key) for key in keys} or {1}
        if len(counts) > 1:
            raise fields.refusal(keys[0], f"and {keys[1]} disagree")
        return {"shared": counts.pop() * known["expert_hidden"]}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"num_shared_experts": known["shared"] // known["expert_hidden"]} if "shared" in known else {}


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    size = known["linear_head"]
    delta = mixer(
        "kda",
        heads=known["linear_heads"],
        key_size=size,
        conv=known["conv"],
        norm=Norm("rms", known["eps"]),
    )
    latent = deepseek_v3.latent(known | {"sharper": 1.0})
    mixers = tuple(delta if linear else latent for linear in known["linear"])
    return common.decoder(known | {"kv_heads": known["heads"], "bias": False, "mixers": mixers})


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    known = common.settings(config) | {"linear": tuple(map(is_linear, config.blocks))}
    known |= {"heads": 1, "key_size": 1, "head_size": 1, "value_size": 1, "latent": 1, "query_latent": None}
    known |= {"linear_head": 1, "linear_heads": 1, "conv": 4}  # where no layer has them
    for block in config.blocks:
        of = block.attention
        if is_linear(block):
            known |= {"linear_head": of.key_size, "linear_heads": of.heads, "conv": of.conv}
        else:
            own = {name: getattr(of, name) for name in ("heads", "key_size", "latent", "query_latent")}
            known |= own | {"head_size": of.rope_dim, "value_size": of.values}
    return known


FAMILY = deepseek_v3.FAMILY.but(
    "kimi_linear",
    "KimiLinearForCausalLM",
    hf=(
        *common.renamed(common.HF_DECODER, without=("self_attn", ".mlp.")),
        *map(latent_alone, deepseek_v3.HF_LATENT),
        *HF_KDA,
        *HF_MOE,
    ),
    gguf=(),
    rows=(
        Field("layers", "num_hidden_layers", None, LAYER_COUNT),
        Field("vocab", "vocab_size", None),
        Field("width", "hidden_size", None),
        Field("context", "model_max_length", None, alias="max_position_embeddings"),
        Field("heads", "num_attention_heads", None),
        KeyValueHeads(),
        Field("eps", "rms_norm_eps", None, NUMBER),
        Field("hidden", "intermediate_size", None),
        Field("key_size", "qk_nope_head_dim", None),
        Field("head_size", "qk_rope_head_dim", None),
        Field("value_size", "v_head_dim", None),
        Field("latent", "kv_lora_rank", None),
        deepseek_v3.QueryLatent("query_latent", "q_lora_rank", None, deepseek_v3.LATENT_OR_NONE),
        Field("experts", "num_experts", None, common.TOP_K, alias="num_local_experts"),
        Field("top_k", "num_experts_per_token", None, common.TOP_K, alias="num_experts_per_tok"),
        Field("expert_hidden", "moe_intermediate_size", None),
        SharedExperts(),
        Field("groups", "num_expert_group", None, alias="n_group"),
        Field("top_groups", "topk_group", None),
        Field("normalised", "moe_renormalize", None, FLAG, alias="norm_topk_prob"),
        common.ROUTED_SCALE,
        Mixers(),
        DenseLayers(),
        Only("hidden_act", None, ("silu",), "another activation after the convolutions"),
        Only("tie_word_embeddings", None, (False,), "the embedding table as the head"),
        Only("attention_bias", None, (False,), "a bias in latent attention"),
        Only("mla_use_nope", None, (True,), "latent attention with positions"),
        Only("moe_router_activation_func", None, ("sigmoid",), "another score of experts"),
        Only("moe_layer_freq", None, (1,), "dense layers between sparse ones"),
        Only("use_grouped_topk", None, (True,), "another choice of experts"),
        *common.CAUSAL,
    ),
    build=decoder,
    describe=settings,
    defaults={"vocab": 163840, "width": 2304, "hidden": 9216, "layers": 27, "heads": 32, "context": 1048576}
    | {"eps": 1e-5, "key_size": 128, "head_size": 64, "value_size": 128, "latent": 512, "query_latent": None}
    | {"experts": 256, "top_k": 8, "expert_hidden": 1024, "groups": 1, "top_groups": 1, "normalised": True}
    | {"routed_scale": 2.446, "linear_head": 128, "linear_heads": 32, "conv": 4},
    forget=("rope",),
    fixed={"tied": False, "rope": None, "activation": "silu"},
    sparse=None,
    instead=None,
    mixers=("mla", "kda"),
    harmless=(*deepseek_v3.FAMILY.harmless, "rope_theta", "rope_scaling", "rope_parameters"),
    spellings=((".mlp.", ".block_sparse_moe."),),
)
