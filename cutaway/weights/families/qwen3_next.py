"""Qwen3-Next (2025): three layers of gated delta rule to one of gated attention; Qwen 2's experts.

Norms hold w where x is multiplied by w + 1, but for those of the delta rule's heads.
"""

import numpy as np

from cutaway.errors import UserError
from cutaway.layers.config import Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.model.kinds import kind_of, mixer
from cutaway.weights import decoders, mtp, naming, rows
from cutaway.weights.families import llama, qwen2_moe
from cutaway.weights.family import Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rows import FULL
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import beside, decay_vector, kernel, plus_one, same, split

LINEAR, RECURRENT = "linear_attention", "attention.recurrent_layers"
UNIT_EPS = 1e-6  # added to the squares of queries and keys that become unit vectors
FUSED = ("query", "key", "value", "gate")
OURS, THEIRS = "blocks.{n}.attention", "model.layers.{n}.linear_attn"


def ours(*names: str) -> tuple[str, ...]:
    """Matrices of a layer's mixer."""
    return tuple(f"{OURS}.{name}.weight" for name in names)


def is_linear(block: Block) -> bool:
    """Whether a layer's mixer is the gated delta rule."""
    return kind_of(block.attention) == "gated_delta"


def of_linear(rules: tuple[Rule, ...], linear: bool = True) -> tuple[Rule, ...]:
    """The rules, for layers of one kind alone."""
    return naming.of_layers(rules, lambda block: is_linear(block) is linear)


HF_DELTA = of_linear(
    (
        Rule(f"{THEIRS}.A_log", f"{OURS}.decay.A_log", same),
        Rule(f"{THEIRS}.dt_bias", f"{OURS}.decay.dt_bias", same),
        Rule(f"{THEIRS}.conv1d.weight", f"{OURS}.conv.weight", kernel),
        *naming.weights((f"{THEIRS}.norm", f"{OURS}.norm"), (f"{THEIRS}.out_proj", f"{OURS}.out")),
    )
)
HF_GATED = (
    *naming.one_more(naming.renamed(naming.HF_DECODER, without=("self_attn",))),
    *of_linear(
        (
            *(rule for rule in naming.HF_DECODER if "attn" in rule.theirs and "q_proj" not in rule.theirs),
            *naming.one_more(naming.HF_QK_NORM),
            Rule("model.layers.{n}.self_attn.q_proj.weight", ours("query", "gate"), beside("heads")),
        ),
        linear=False,
    ),
)


def gguf_gated(*delta: Rule) -> tuple[Rule, ...]:
    """GGUF's names without those of MLPs; ``delta``: of linear layers' mixers. Norms multiply as stored."""
    return (
        *naming.GGUF_EMBEDDINGS,
        *naming.GGUF_NORMS[:1],
        *naming.weights(("blk.{n}.post_attention_norm", "blocks.{n}.mlp_norm")),
        *of_linear(
            (
                Rule("blk.{n}.attn_q.weight", ours("query", "gate"), beside("heads")),
                *naming.weights(naming.GGUF_QUERY_KEY[1], naming.GGUF_VALUE, naming.GGUF_OUT),
                *naming.GGUF_QK_NORM,
            ),
            linear=False,
        ),
        *of_linear((*delta, *naming.weights(("blk.{n}.ssm_norm", f"{OURS}.norm")))),
    )


class Mixers(Row):
    """Which layers are linear, and the sizes of those."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            listed, every = fields.get(RECURRENT), fields.integer("full_attention_interval", 4)
            if listed is None:
                listed = np.array([bool((n + 1) % every) for n in range(known["layers"])])
            stated = known["layers"], known["layers"] + known["mtp"]
            if not isinstance(listed, np.ndarray) or len(listed) not in stated:
                raise fields.refusal(RECURRENT, "should say of each layer whether it is recurrent")
            return {"linear": tuple(bool(each) for each in listed[: known["layers"]])}
        interval = fields.integer("full_attention_interval", 4)
        kinds = fields.each_layer("layer_types", known["layers"], (LINEAR, FULL))
        linear = [bool((n + 1) % interval) for n in range(known["layers"])]
        return {"linear": tuple(linear if kinds is None else (kind == LINEAR for kind in kinds))}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            if abs(known["eps"] - UNIT_EPS) > 1e-9 and any(known["linear"]):
                why = f"llama.cpp adds it to the squares of queries and keys, where {UNIT_EPS:g} belongs"
                raise UserError(f"norms' eps of {known['eps']:g} is not supported in GGUF: {why}")
            return {RECURRENT: np.array([*known["linear"], *(False,) * known["mtp"]], bool)}
        return {"layer_types": [LINEAR if linear else FULL for linear in known["linear"]]}


class ValueSize(Field):
    """In GGUF the size of all values of a linear layer; llama.cpp has keys as wide as values."""

    def _from_gguf(self, fields: Fields, known: Settings, own: Family) -> Settings:
        inner, heads = fields.integer(str(self.gguf)), known["value_heads"]
        if inner != heads * known["linear_key_size"]:
            wanted = f"{heads} heads of {known['linear_key_size']}"
            raise fields.refusal(str(self.gguf), f"is {inner}, which is not {wanted}")
        return {"linear_value_size": inner // heads}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if not gguf:
            return super().write(known, gguf)
        size, heads = known.get("linear_value_size"), known.get("value_heads")
        if size is None or heads is None or size != known["linear_key_size"]:
            raise UserError("a delta rule whose keys are not as wide as its values is not supported in GGUF")
        return {str(self.gguf): size * heads}


DELTA = (
    Field("conv", "linear_conv_kernel_dim", "ssm.conv_kernel"),
    Field("key_heads", "linear_num_key_heads", "ssm.group_count"),
    Field("value_heads", "linear_num_value_heads", "ssm.time_step_rank"),
    Field("linear_key_size", "linear_key_head_dim", "ssm.state_size"),
    ValueSize("linear_value_size", "linear_value_head_dim", "ssm.inner_size"),
    Only("attention_bias", None, (False,), "a bias in gated attention"),
    Only("hidden_act", None, ("silu",), "another activation after the convolution"),
    Mixers(),
)


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    delta = mixer(
        "gated_delta",
        heads=known["value_heads"],
        key_heads=known["key_heads"],
        key_size=known["linear_key_size"],
        value_size=known["linear_value_size"],
        conv=known["conv"],
        norm=Norm("rms", known["eps"]),
    )
    gated = mixer("gated", **decoders.shape(known), qk_norm=Norm("rms", known["eps"]))
    mixers = tuple(delta if linear else gated for linear in known["linear"])
    return decoders.decoder(known | {"bias": False, "mixers": mixers})


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    mixers = [block.attention for block in config.blocks]
    linear = tuple(map(is_linear, config.blocks))
    known = decoders.settings(config) | {"linear": linear}
    for each in mixers:
        if kind_of(each) == "gated_delta":
            known |= {"conv": each.conv, "key_heads": each.groups, "value_heads": each.heads}
            known |= {"linear_key_size": each.key_size, "linear_value_size": each.values}
    return known


def with_heads(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules, and those of the head that predicts one token more."""
    return mtp.apart(rules, norms=plus_one)


def full_block(config: Decoder) -> Block:
    """The block of the last layer with attention, as that head has it."""
    return next(block for block in reversed(config.blocks) if not is_linear(block))


FAMILY = llama.FAMILY.but(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    hf=with_heads(
        (
            *HF_GATED,
            *HF_DELTA,
            *of_linear(
                (
                    Rule(f"{THEIRS}.in_proj_qkvz.weight", ours(*FUSED), beside("groups")),
                    Rule(f"{THEIRS}.in_proj_ba.weight", ours("beta", "forget"), beside("groups")),
                )
            ),
            *(rule for rule in qwen2_moe.FAMILY.hf if rule not in naming.HF_DECODER),
        )
    ),
    gguf=mtp.in_gguf(
        (
            *gguf_gated(
                Rule("blk.{n}.attn_qkv.weight", ours("query", "key", "value"), split),
                *naming.weights(("blk.{n}.attn_gate", f"{OURS}.gate"), ("blk.{n}.ssm_out", f"{OURS}.out")),
                Rule("blk.{n}.ssm_ba.weight", ours("beta", "forget"), beside("groups")),
                Rule("blk.{n}.ssm_conv1d.weight", f"{OURS}.conv.weight", same),
                Rule("blk.{n}.ssm_dt.bias", f"{OURS}.decay.dt_bias", same),
                Rule("blk.{n}.ssm_a", f"{OURS}.decay.A_log", decay_vector),
            ),
            *naming.GGUF_EXPERTS,
            *naming.GGUF_SHARED_EXPERT,
        )
    ),
    ignored_gguf=(),
    gguf_fixed={"normalised": True, "activation": "silu"},
    rows=(
        *rows.turning(rows.SIZES, part=0.25),
        *rows.replaced(qwen2_moe.ROWS, without=("windows",)),
        Field("shared", "shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
        mtp.Heads("num_nextn_predict_layers"),
        *DELTA,
    ),
    build=decoder,
    mtp_block=full_block,
    describe=settings,
    defaults={"kv_heads": 2, "head_size": 256, "context": 32768, "experts": 512, "top_k": 10}
    | {"expert_hidden": 512, "shared": 512, "normalised": True, "hidden": 5632}
    | {"conv": 4, "key_heads": 16, "value_heads": 32, "linear_key_size": 128, "linear_value_size": 128},
    forget=("kv_heads", "head_size", "bias", "out_bias"),
    fixed={"shared_gate": True},
    sparse=True,
    mixers=("gated_delta", "gated"),
    ignored_hf=("mtp.*", "model.rotary_emb.inv_freq"),
)
