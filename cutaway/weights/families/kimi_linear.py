"""Kimi Linear (2510.26692): three layers of Kimi Delta Attention to one of MLA without positions.

Experts are those of DeepSeek-V3. llama.cpp adds the other norms' eps, here 1e-6, to the squares of the linear
layers' queries and keys. Its own config counts layers from one, under ``linear_attn_config``;
transformers writes lists of words.
"""

from cutaway.errors import UserError
from cutaway.gguf import Packed
from cutaway.layers.config import Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.model.kinds import kind_of, mixer
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families import deepseek_v3
from cutaway.weights.family import FLAG, LAYER_COUNT, NUMBER, Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.named_tensors import Tensors
from cutaway.weights.rows import FULL
from cutaway.weights.rules import How, Rule
from cutaway.weights.tensor_maps import decay, kernel, same

ALIASES = ("kimi-linear",)
LINEAR = "linear_attention"
MOST_EPS = 1e-5  # the published model's
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


def is_latent(block: Block) -> bool:
    """Whether a layer's mixer is latent attention."""
    return not is_linear(block)


HF_KDA = naming.of_layers(
    (
        *naming.weights(
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
    ),
    is_linear,
)
GGUF_KDA = naming.of_layers(
    (
        *naming.weights(
            *naming.GGUF_QUERY_KEY,
            naming.GGUF_VALUE,
            naming.GGUF_OUT,
            ("blk.{n}.ssm_beta", f"{OURS}.beta"),
            ("blk.{n}.ssm_f_a", f"{OURS}.forget_down"),
            ("blk.{n}.ssm_f_b", f"{OURS}.forget"),
            ("blk.{n}.ssm_g_a", f"{OURS}.gate_down"),
            ("blk.{n}.ssm_g_b", f"{OURS}.gate"),
            ("blk.{n}.ssm_norm", f"{OURS}.norm"),
        ),
        *(
            Rule(f"blk.{{n}}.ssm_conv1d_{name[0]}.weight", f"{OURS}.conv.{name}.weight", kernel)
            for name in ("query", "key", "value")
        ),
        Rule("blk.{n}.ssm_a", f"{OURS}.decay.A_log", decay),
        Rule("blk.{n}.ssm_dt.bias", f"{OURS}.decay.dt_bias", same),
    ),
    is_linear,
)
HF_MOE = naming.renamed(
    (
        *(rule for rule in naming.HF_DECODER if ".mlp." in rule.theirs and "bias" not in rule.theirs),
        *naming.HF_DEEPSEEK_EXPERTS,
    ),
    (".mlp.experts.{e}.gate_proj", ".mlp.experts.{e}.w1"),
    (".mlp.experts.{e}.up_proj", ".mlp.experts.{e}.w3"),
    (".mlp.experts.{e}.down_proj", ".mlp.experts.{e}.w2"),
    (".mlp.", ".block_sparse_moe."),
)


class Mixers(Row):
    """Which layers are linear, and the sizes of those."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            size, conv = fields.integer("kda.head_dim"), fields.integer("ssm.conv_kernel")
            return {"linear_heads": known["heads"], "linear_head": size, "conv": conv}
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
        if gguf:
            if known["linear_heads"] != known["heads"] or not any(known["linear"]):
                raise UserError("linear attention of other heads than the latent's is not supported in GGUF")
            return {"kda.head_dim": known["linear_head"], "ssm.conv_kernel": known["conv"]}
        return {
            "layer_types": [LINEAR if linear else FULL for linear in known["linear"]],
            "linear_head_dim": known["linear_head"],
            "linear_num_heads": known["linear_heads"],
            "linear_conv_kernel_dim": known["conv"],
        }


class KeyValueHeads(rows.HybridKeyValueHeads):
    """Key-value heads: as many as heads, which share one latent. In GGUF 1, and 0 in linear layers."""

    others = "linear"

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if not fields.gguf:
            fields.only("num_key_value_heads", (known["heads"], None), "fewer key-value heads than heads")
            return {}
        found = super().read(fields, known, own)
        if found.pop("kv_heads") != 1:
            raise fields.refusal(str(self.gguf), "should be one latent or none")
        return found

    def write(self, known: Settings, gguf: bool) -> Entries:
        return super().write(known | {"kv_heads": 1 if gguf else known["heads"]}, gguf)


class SharedExperts(Row):
    """Experts that all tokens pass, which are one MLP of their joint width."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return rows.SharedExperts().read(fields, known, own)
        keys = [key for key in ("num_shared_experts", "n_shared_experts") if fields.stated(key)]
        counts = {fields.integer(key) for key in keys} or {1}
        if len(counts) > 1:
            raise fields.refusal(keys[0], f"and {keys[1]} disagree")
        return {"shared": counts.pop() * known["expert_hidden"]}

    def write(self, known: Settings, gguf: bool) -> Entries:
        key = "expert_shared_count" if gguf else "num_shared_experts"
        return {key: known["shared"] // known["expert_hidden"]} if "shared" in known else {}


class HeadSizes(deepseek_v3.HeadSizes):
    """The key-value heads of each layer are in a list."""

    def write(self, known: Settings, gguf: bool) -> Entries:
        sizes = super().write(known, gguf).items()
        return {key: size for key, size in sizes if key != "attention.head_count_kv"}


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
    return decoders.decoder(known | {"kv_heads": known["heads"], "bias": False, "mixers": mixers})


def folded(config: Decoder, tensors: Tensors) -> tuple[Decoder, Tensors, str]:
    """llama.cpp adds the norms' eps to the squares of queries and keys too, where 1e-6 belongs."""
    eps = config.blocks[0].norm.eps
    if eps > MOST_EPS and any(map(is_linear, config.blocks)):
        raise UserError(
            f"norms' eps of {eps:g} in a model of linear layers is not supported in GGUF: llama.cpp adds it "
            f"to the squares of their queries and keys, where more than {MOST_EPS:g} changes what it computes"
        )
    config, tensors, note = deepseek_v3.folded(config, tensors)
    return config, tensors, f"{note}, which llama.cpp takes for unit vectors as well"


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    known = decoders.settings(config) | {"linear": tuple(map(is_linear, config.blocks))}
    known |= {"heads": 1, "key_size": 1, "head_size": 1, "value_size": 1, "latent": 1, "query_latent": None}
    known |= {"latent_eps": deepseek_v3.EPS}
    known |= {"linear_head": 1, "linear_heads": 1, "conv": 4}  # where no layer has them
    for block in config.blocks:
        of = block.attention
        if is_linear(block):
            known |= {"linear_head": of.key_size, "linear_heads": of.heads, "conv": of.conv}
        else:
            own = {name: getattr(of, name) for name in ("heads", "key_size", "latent", "query_latent")}
            known |= own | {"head_size": of.rope_dim, "value_size": of.values}
            known |= {"latent_eps": of.norm.eps if of.norm else None}
    return known


FAMILY = deepseek_v3.FAMILY.but(
    "kimi_linear",
    "KimiLinearForCausalLM",
    hf=(
        *naming.renamed(naming.HF_DECODER, without=("self_attn", ".mlp.")),
        *naming.of_layers(deepseek_v3.HF_LATENT, is_latent),
        *HF_KDA,
        *HF_MOE,
    ),
    gguf=(
        *naming.of_layers(deepseek_v3.GGUF_MIXTURE, is_latent, naming.MIXER),
        *GGUF_KDA,
    ),
    gguf_joined=(),
    rows=(
        Field("layers", "num_hidden_layers", "block_count", LAYER_COUNT),
        rows.Vocab("vocab", "vocab_size", "vocab_size"),
        Field("width", "hidden_size", "embedding_length"),
        Field("context", "model_max_length", "context_length", alias="max_position_embeddings"),
        Field("heads", "num_attention_heads", "attention.head_count", each_layer=True),
        KeyValueHeads("kv_heads", "num_key_value_heads", "attention.head_count_kv"),
        Field("eps", "rms_norm_eps", "attention.layer_norm_rms_epsilon", NUMBER),
        Field("hidden", "intermediate_size", "feed_forward_length", each_layer=True),
        Field("key_size", "qk_nope_head_dim", None),
        Field("head_size", "qk_rope_head_dim", "rope.dimension_count"),
        Field("value_size", "v_head_dim", None),
        Field("latent", "kv_lora_rank", "attention.kv_lora_rank"),
        Field("query_latent", "q_lora_rank", None, deepseek_v3.LATENT_OR_NONE),
        HeadSizes(),
        Field("experts", "num_experts", "expert_count", rows.TOP_K, alias="num_local_experts"),
        Field("top_k", "num_experts_per_token", "expert_used_count", rows.TOP_K, alias="num_experts_per_tok"),
        Field("expert_hidden", "moe_intermediate_size", "expert_feed_forward_length", each_layer=True),
        SharedExperts(),
        rows.SigmoidScores(),
        Field("groups", "num_expert_group", "expert_group_count", missing=1, alias="n_group"),
        Field("top_groups", "topk_group", "expert_group_used_count", missing=1),
        Field("normalised", "moe_renormalize", None, FLAG, alias="norm_topk_prob"),
        Field("routed_scale", "routed_scaling_factor", "expert_weights_scale", NUMBER, missing=1.0),
        Mixers(),
        rows.MLPTypes("first_k_dense_replace"),
        Only("hidden_act", None, ("silu",), "another activation after the convolutions"),
        Only("tie_word_embeddings", None, (False,), "the embedding table as the head"),
        Only("attention_bias", None, (False,), "a bias in latent attention"),
        Only("mla_use_nope", None, (True,), "latent attention with positions"),
        Only("moe_router_activation_func", None, ("sigmoid",), "another score of experts"),
        Only("moe_layer_freq", None, (1,), "dense layers between sparse ones"),
        Only("use_grouped_topk", None, (True,), "another choice of experts"),
        Only(None, "expert_weights_norm", (True,), "weighing experts otherwise"),
        *rows.CAUSAL,
    ),
    build=decoder,
    describe=settings,
    defaults={"vocab": 163840, "width": 2304, "hidden": 9216, "layers": 27, "heads": 32, "context": 1048576}
    | {"eps": 1e-5, "query_latent": None, "expert_hidden": 1024, "groups": 1, "top_groups": 1}
    | {"routed_scale": 2.446, "linear_head": 128, "linear_heads": 32, "conv": 4},
    fixed={"tied": False, "rope": None, "activation": "silu"},
    folded=folded,
    gguf_fixed={"normalised": True, "query_latent": None},
    architecture="kimi-linear",
    sparse=None,
    instead=None,
    mixers=("mla", "kda"),
    harmless=(
        "num_nextn_predict_layers",
        "num_mtp_layers",
        *deepseek_v3.FAMILY.harmless,
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
    ),
    spellings=((".mlp.", ".block_sparse_moe."),),
    modules=(
        (".block_sparse_moe.", ".mlp."),
        (".self_attn.f_", ".self_attn.forget_gate.f_"),
        (".self_attn.A_log", ".self_attn.forget_gate.A_log"),
        (".self_attn.dt_bias", ".self_attn.forget_gate.dt_bias"),
    ),
)
