"""Granite 4 (2025): Mamba 2 in most layers and attention without positions in some, Granite's multipliers.

Every layer has a shared MLP, beside experts or alone.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from cutaway.errors import UserError
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.model.kinds import kind_of, mixer
from cutaway.weights import decoders, naming, rotary, rows
from cutaway.weights.families import granite, granitemoe, llama
from cutaway.weights.family import FLAG, Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rows import FULL
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import column, decay, in_groups, kernel, same, split

ALIASES = ("granitehybrid",)
LINEAR, ROTATES = "linear_attention", "rope.scaling.finetuned"
KINDS = {LINEAR: True, "mamba": True, FULL: False, "attention": False}
OURS, THEIRS = "blocks.{n}.attention", "model.layers.{n}.mamba"
SHARED = "model.layers.{n}.shared_mlp"
PARTS = ("gate", "value", "key", "query", "step")  # z, x, B, C, dt


def is_mamba(block: Block) -> bool:
    """Whether a layer's mixer is Mamba 2."""
    return kind_of(block.attention) == "mamba2"


def attends(block: Block) -> bool:
    """Whether a layer's mixer is attention."""
    return not is_mamba(block)


def hf_mamba(
    theirs: str, ours: str = OURS, when: Callable[[Block], bool] | None = is_mamba
) -> tuple[Rule, ...]:
    """The names of a Mamba 2 mixer, theirs and ours."""
    return (
        *(
            Rule(f"{theirs}.in_proj.{part}", tuple(f"{ours}.{name}.{part}" for name in PARTS), split, when)
            for part in ("weight", "bias")
        ),
        *(
            Rule(f"{theirs}.{one}", f"{ours}.{other}", same, when)
            for one, other in (
                ("conv1d.bias", "conv.bias"),
                ("dt_bias", "decay.dt_bias"),
                ("A_log", "decay.A_log"),
                ("D", "D"),
                ("norm.weight", "norm"),
                ("out_proj.weight", "out.weight"),
                ("out_proj.bias", "out.bias"),
            )
        ),
        Rule(f"{theirs}.conv1d.weight", f"{ours}.conv.weight", kernel, when),
    )


HF_MAMBA = hf_mamba(THEIRS)


def gguf_mamba(ours: str = OURS, when: Callable[[Block], bool] | None = is_mamba) -> tuple[Rule, ...]:
    """GGUF's names of a Mamba 2 mixer, whose matrices have no biases there."""
    named = {
        "ssm_conv1d.weight": "conv.weight",
        "ssm_conv1d.bias": "conv.bias",
        "ssm_out.weight": "out.weight",
    }
    named |= {"ssm_dt.bias": "decay.dt_bias"}
    shaped = {"ssm_a": ("decay.A_log", decay), "ssm_d": ("D", column), "ssm_norm.weight": ("norm", in_groups)}
    return (
        Rule("blk.{n}.ssm_in.weight", tuple(f"{ours}.{name}.weight" for name in PARTS), split, when),
        *(Rule(f"blk.{{n}}.{one}", f"{ours}.{other}", same, when) for one, other in named.items()),
        *(Rule(f"blk.{{n}}.{one}", f"{ours}.{other}", how, when) for one, (other, how) in shaped.items()),
    )


class InGGUF(Row):
    """The sizes of Mamba 2 in GGUF, where llama.cpp reads a bias of the convolution, and none of matrices."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if not fields.gguf:
            return {}
        heads, inner = fields.integer("ssm.time_step_rank"), fields.integer("ssm.inner_size")
        if inner % heads:
            raise fields.refusal("ssm.inner_size", f"is {inner}, which {heads} heads cannot share evenly")
        found = {"mamba_heads": heads, "mamba_size": inner // heads, "mamba_bias": False, "conv_bias": True}
        keys = {"state_size": "state_size", "mamba_groups": "group_count", "conv": "conv_kernel"}
        return found | {name: fields.integer(f"ssm.{key}") for name, key in keys.items()}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if not gguf:
            return {}
        if "mamba_heads" not in known:
            raise UserError("without Mamba layers it is of another architecture in GGUF")
        if not known["conv_bias"]:
            raise UserError("a convolution without a bias is not supported in GGUF")
        return {
            "ssm.time_step_rank": known["mamba_heads"],
            "ssm.inner_size": known["mamba_heads"] * known["mamba_size"],
            "ssm.state_size": known["state_size"],
            "ssm.group_count": known["mamba_groups"],
            "ssm.conv_kernel": known["conv"],
        }


def both(place: str) -> tuple[str, str]:
    """The two matrices of a gated MLP that one of theirs holds."""
    return f"blocks.{{n}}.mlp{place}.gate.weight", f"blocks.{{n}}.mlp{place}.up.weight"


class KeyValueHeads(rows.HybridKeyValueHeads):
    """No heads where a layer is Mamba 2."""

    others = "mamba"


class Rope(rotary.Rope):
    """GGUF has no angles where attention does not rotate; a part of each head that does is Bamba's."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf and not fields.flag(ROTATES, True):
            for key in ("rope.dimension_count", "rope.freq_base"):
                fields.get(key)
            return {"rope": None}
        if fields.gguf:
            return rotary.Rope.read(replace(self, part=1.0), fields, known, own)
        return super().read(fields, known, own)

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {} if gguf and not known["turns"] else super().write(known, gguf)


class Mixers(Row):
    """Which layers are Mamba 2, and the sizes of those; in GGUF others say so."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {}
        layers, heads = known["layers"], fields.integer("mamba_n_heads", 128)
        kinds = fields.each_layer("layer_types", layers, tuple(KINDS)) or (LINEAR,) * layers
        inner = fields.integer("mamba_expand", 2) * known["width"]
        auto = fields.get("mamba_d_head") in (None, "auto")
        size = inner // heads if auto else fields.integer("mamba_d_head")
        if size * heads != inner:
            raise fields.refusal("mamba_d_head", f"is {size}: {heads} heads of it are not {inner} numbers")
        return {"mamba": tuple(KINDS[kind] for kind in kinds), "mamba_heads": heads, "mamba_size": size}

    def write(self, known: Settings, gguf: bool) -> Entries:
        inner = known["mamba_heads"] * known["mamba_size"]
        if gguf:
            if inner != 2 * known["width"]:
                raise UserError("a Mamba 2 that is not twice as wide as the model is not supported in GGUF")
            return {}
        return {
            "layer_types": [LINEAR if mamba else FULL for mamba in known["mamba"]],
            "mamba_n_heads": known["mamba_heads"],
            "mamba_d_head": known["mamba_size"],
            "mamba_expand": inner // known["width"],
        }


class Position(Row):
    """Whether attention rotates."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {"turns": fields.flag(ROTATES, True)}
        return {"turns": fields.get("position_embedding_type") == "rope"}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            return {ROTATES: known["turns"]}
        return {"position_embedding_type": "rope" if known["turns"] else "nope"}


class Experts(Row):
    """The experts of every layer, 0 where the shared MLP is alone, and the width of that."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return self._from_gguf(fields)
        experts = fields.integer("num_local_experts", 8, low=0)
        hidden, shared = (
            fields.integer("intermediate_size", 11008),
            fields.integer("shared_intermediate_size", 1024),
        )
        top_k = fields.integer("num_experts_per_tok", 2, low=0)
        if not experts:
            return {"hidden": shared}
        return {
            "experts": experts,
            "top_k": top_k,
            "expert_hidden": hidden,
            "shared": shared,
            "hidden": hidden,
        }

    def _from_gguf(self, fields: Fields) -> Settings:
        experts, hidden = fields.integer("expert_count", 0, low=0), fields.integer("feed_forward_length")
        if not experts:
            return {"hidden": hidden}
        found = {"experts": experts, "expert_hidden": hidden, "hidden": hidden}
        keys = {"top_k": "expert_used_count", "shared": "expert_shared_feed_forward_length"}
        return found | {name: fields.integer(key) for name, key in keys.items()}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf and "experts" not in known:
            return {"feed_forward_length": known["hidden"]}
        if gguf:
            names = {"expert_count": "experts", "expert_used_count": "top_k"}
            names |= {"feed_forward_length": "expert_hidden", "expert_shared_feed_forward_length": "shared"}
            return {key: known[name] for key, name in names.items()}
        if "experts" not in known:
            return {
                "num_local_experts": 0,
                "num_experts_per_tok": 0,
                "shared_intermediate_size": known["hidden"],
            }
        return {
            "num_local_experts": known["experts"],
            "num_experts_per_tok": known["top_k"],
            "intermediate_size": known["expert_hidden"],
            "shared_intermediate_size": known["shared"],
        }


def mamba2(known: Settings, **more: Any) -> Any:
    """The Mamba 2 mixer of these settings."""
    return mixer(
        "mamba2",
        heads=known["mamba_heads"],
        key_size=known["state_size"],
        value_size=known["mamba_size"],
        groups=known["mamba_groups"],
        conv=known["conv"],
        bias=known["mamba_bias"],
        conv_bias=known["conv_bias"],
        eps=known["eps"],
        **more,
    )


def described(mixers: Iterable[Any]) -> Settings:
    """The settings of Mamba 2 mixers, equal in all layers."""
    known: Settings = {}
    for one in mixers:
        known |= {"mamba_heads": one.heads, "mamba_size": one.values, "state_size": one.key_size}
        known |= {"mamba_groups": one.groups, "conv": one.conv}
        known |= {"mamba_bias": one.bias, "conv_bias": one.conv_bias}
    return known


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    mamba = mamba2(known)
    attention = decoders.heads(
        **decoders.shape(known if known["turns"] else known | {"rope": None}),
        scale=known["scale"],
        bias=known["bias"],
        out_bias=known["out_bias"],
    )
    return decoders.decoder(known | {"mixers": tuple(mamba if one else attention for one in known["mamba"])})


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config; UserError if none of its layers is Mamba 2."""
    known = decoders.settings(config) | {"mamba": tuple(map(is_mamba, config.blocks))}
    if not any(known["mamba"]):
        raise UserError("none of its layers is Mamba 2")
    known["turns"] = any(block.attention.position for block in config.blocks)
    return known | described(block.attention for block in config.blocks if is_mamba(block))


UNLIMITED = [0.0, float("inf")], [0.0, {"__float__": "Infinity"}]  # older and newer JSON of transformers
KV_HEADS = KeyValueHeads("kv_heads", "num_key_value_heads", "attention.head_count_kv")
HYBRID_SIZES = rows.replaced(rows.SIZES, KV_HEADS, Rope(), without=("activation",))
MAMBA = (
    InGGUF(),
    Field("state_size", "mamba_d_state", None),
    Field("mamba_groups", "mamba_n_groups", None),
    Field("conv", "mamba_d_conv", None),
    Field("conv_bias", "mamba_conv_bias", None, FLAG),
    Field("mamba_bias", "mamba_proj_bias", None, FLAG),
    Only("time_step_limit", None, (*UNLIMITED, None), "clamped steps"),
    Only("hidden_act", None, ("silu",), "another activation"),
    Mixers(),
)
FAMILY = llama.FAMILY.but(
    "granitemoehybrid",
    "GraniteMoeHybridForCausalLM",
    modules=granitemoe.FAMILY.modules,
    hf=(
        *naming.of_layers(naming.renamed(granitemoe.FAMILY.hf, without=(".mlp.",)), attends, naming.MIXER),
        *HF_MAMBA,
        *(Rule(f"{SHARED}.input_linear.weight", both(place), split) for place in ("", ".shared")),
        *(
            Rule(f"{SHARED}.output_linear.weight", f"blocks.{{n}}.mlp{place}.down.weight", same)
            for place in ("", ".shared")
        ),
    ),
    gguf=(
        *naming.of_layers(llama.GGUF_ATTENTION, attends),
        *naming.GGUF_EMBEDDINGS,
        *naming.GGUF_NORMS,
        *naming.weights(*naming.GGUF_MLP),
        *naming.GGUF_EXPERTS,
        *naming.GGUF_SHARED_EXPERT[1:],
        *gguf_mamba(),
    ),
    architecture="granitehybrid",
    rows=(
        *HYBRID_SIZES,
        *rows.biases("attention_bias"),
        *granite.MULTIPLIERS,
        Position(),
        Experts(),
        *MAMBA,
    ),
    build=decoder,
    describe=settings,
    defaults={"embedding_scale": 1.0, "residual": 1.0, "scale": 1.0, "logit_scale": 1.0, "conv": 4}
    | {"state_size": 256, "mamba_groups": 1, "conv_bias": True, "mamba_bias": False},
    fixed={"activation": "silu", "normalised": True},
    sparse=None,
    mixers=("mamba2", "mha", "gqa", "mqa"),
    harmless=("mamba_chunk_size",),
)
