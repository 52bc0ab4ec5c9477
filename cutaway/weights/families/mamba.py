"""Mamba (2312.00752): nothing but the selective scan in each layer, no attention and no MLP."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from cutaway.errors import UserError
from cutaway.layers.config import Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.model.kinds import kind_of, mixer
from cutaway.weights import decoders, naming, rows
from cutaway.weights.family import (
    FLAG,
    LAYER_COUNT,
    NUMBER,
    Entries,
    Family,
    Field,
    Only,
    Present,
    Row,
    Settings,
)
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import decay_matrix, kernel, same, split

OURS = "blocks.{n}.attention"
LAYER = "backbone.layers.{n}"
DT_NORM = "ssm.dt_b_c_rms"


def is_mamba(block: Block) -> bool:
    """Whether a layer's mixer is Mamba's."""
    return kind_of(block.attention) == "mamba"


def hf_mamba(theirs: str, when: Callable[[Block], bool] | None = None) -> tuple[Rule, ...]:
    """The names of a Mamba mixer, theirs and ours."""
    inner = tuple(f"{OURS}.{name}.weight" for name in ("step_down", "key", "query"))
    named = {
        "conv1d.bias": "conv.bias",
        "dt_proj.weight": "step.weight",
        "dt_proj.bias": "dt_bias",
        "A_log": "A_log",
        "D": "D",
        "out_proj.weight": "out.weight",
        "out_proj.bias": "out.bias",
        "dt_layernorm.weight": "step_norm.weight",
        "b_layernorm.weight": "key_norm.weight",
        "c_layernorm.weight": "query_norm.weight",
    }
    return (
        *(
            Rule(f"{theirs}.in_proj.{part}", (f"{OURS}.value.{part}", f"{OURS}.gate.{part}"), split, when)
            for part in ("weight", "bias")
        ),
        Rule(f"{theirs}.conv1d.weight", f"{OURS}.conv.weight", kernel, when),
        Rule(f"{theirs}.x_proj.weight", inner, split, when),
        *(Rule(f"{theirs}.{one}", f"{OURS}.{other}", same, when) for one, other in named.items()),
    )


def gguf_mamba(when: Callable[[Block], bool] | None = None) -> tuple[Rule, ...]:
    """GGUF's names of a Mamba mixer, whose projections have no biases there."""
    inner = tuple(f"{OURS}.{name}.weight" for name in ("step_down", "key", "query"))
    named = {
        "ssm_conv1d.weight": "conv.weight",
        "ssm_conv1d.bias": "conv.bias",
        "ssm_dt.weight": "step.weight",
        "ssm_dt.bias": "dt_bias",
        "ssm_d": "D",
        "ssm_out.weight": "out.weight",
        "ssm_dt_norm.weight": "step_norm.weight",
        "ssm_b_norm.weight": "key_norm.weight",
        "ssm_c_norm.weight": "query_norm.weight",
    }
    both = (f"{OURS}.value.weight", f"{OURS}.gate.weight")
    return (
        Rule("blk.{n}.ssm_in.weight", both, split, when),
        Rule("blk.{n}.ssm_x.weight", inner, split, when),
        Rule("blk.{n}.ssm_a", f"{OURS}.A_log", decay_matrix, when),
        *(Rule(f"blk.{{n}}.{one}", f"{OURS}.{other}", same, when) for one, other in named.items()),
    )


class Sizes(Row):
    """The channels of a mixer, as times of the width, and the rank of its steps."""

    def __init__(self, expand: str = "expand", rank: str = "time_step_rank") -> None:
        self.keys = expand, rank

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            keys = {"channels": "inner_size", "rank": "time_step_rank", "state_size": "state_size"}
            found = {name: fields.integer(f"ssm.{key}") for name, key in keys.items()}
            return found | {"conv": fields.integer("ssm.conv_kernel"), "mamba_bias": False, "conv_bias": True}
        expand, rank = self.keys
        times = fields.integer(expand) if fields.stated(expand) else 2
        auto = not fields.stated(rank) or fields.get(rank) == "auto"
        size = -(-known["width"] // 16) if auto else fields.integer(rank)
        return {"channels": times * known["width"], "rank": size}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            if not known["conv_bias"]:
                raise UserError("a convolution without a bias is not supported in GGUF")
            if known["channels"] != 2 * known["width"]:
                raise UserError("a Mamba that is not twice as wide as the model is not supported in GGUF")
            keys = {"inner_size": "channels", "time_step_rank": "rank", "state_size": "state_size"}
            return {f"ssm.{key}": known[name] for key, name in (keys | {"conv_kernel": "conv"}).items()}
        expand, rank = self.keys
        if known["channels"] % known["width"]:
            raise UserError("a Mamba that is not a whole number of times as wide as the model has no name")
        return {expand: known["channels"] // known["width"], rank: known["rank"]}


def mamba(known: Settings) -> Any:
    """The mixer of these settings."""
    return mixer(
        "mamba",
        channels=known["channels"],
        rank=known["rank"],
        state_size=known["state_size"],
        conv=known["conv"],
        bias=known["mamba_bias"],
        conv_bias=known["conv_bias"],
        norm=known.get("inner_norm"),
    )


def described(mixers: Iterable[Any]) -> Settings:
    """The settings of Mamba mixers, equal in all layers."""
    known: Settings = {}
    for one in mixers:
        known = {name: getattr(one, name) for name in ("channels", "rank", "state_size", "conv", "conv_bias")}
        known |= {"mamba_bias": one.bias, "inner_norm": one.norm}
    return known


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    norm = Norm("rms", known["eps"])
    block = Block(mamba(known), None, norm)
    return Decoder(
        known["vocab"], known["width"], known["context"], (block,) * known["layers"], norm, known["tied"]
    )


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    return decoders.settings(config) | described(block.attention for block in config.blocks)


class Alone(Row):
    """What llama.cpp asks for beside the mixer, and whether its inner values are normed (Falcon Mamba)."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            fields.only("feed_forward_length", (0,), "an MLP beside Mamba")
            fields.only("attention.head_count", (0,), "heads of attention beside Mamba")
            fields.only(DT_NORM, (own.name != "mamba",), "other norms inside the mixer")
        return {}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if not gguf:
            return {}
        return {"feed_forward_length": 0, "attention.head_count": 0, DT_NORM: known["inner_norm"] is not None}


NAMES = naming.weights(
    ("backbone.embeddings", "embedding"),
    ("backbone.norm_f", "norm"),
    ("lm_head", "head"),
    (f"{LAYER}.norm", "blocks.{n}.attention_norm"),
)
SIZES = (
    Field("layers", "num_hidden_layers", "block_count", LAYER_COUNT),
    rows.Vocab("vocab", "vocab_size", "vocab_size"),
    Field("width", "hidden_size", "embedding_length"),
    Field("context", "max_position_embeddings", "context_length"),
    Field("eps", "layer_norm_epsilon", "attention.layer_norm_rms_epsilon", NUMBER),
    Present("tied", "tie_word_embeddings", "output.weight", absent=True),
)
FAMILY = Family(
    "mamba",
    "MambaForCausalLM",
    hf=(
        *NAMES,
        *hf_mamba(f"{LAYER}.mixer"),
    ),
    gguf=(*naming.GGUF_EMBEDDINGS, *naming.GGUF_NORMS[:1], *gguf_mamba()),
    rows=(
        *SIZES,
        Field("state_size", "state_size", None),
        Field("conv", "conv_kernel", None),
        Field("mamba_bias", "use_bias", None, FLAG),
        Field("conv_bias", "use_conv_bias", None, FLAG),
        Sizes(),
        Alone(),
        Only("hidden_act", None, ("silu",), "another activation"),
        # Transformers divides the outputs' matrices by it once more, each time it opens a file.
        Only("rescale_prenorm_residual", None, (False,), "rescaling weights that are there"),
        *rows.CAUSAL,
    ),
    build=decoder,
    describe=settings,
    defaults={"vocab": 50280, "width": 768, "layers": 32, "eps": 1e-5, "tied": True, "context": 1 << 20}
    | {"state_size": 16, "conv": 4, "mamba_bias": False, "conv_bias": True},
    mixers=("mamba",),
    prefix="backbone.",
    bypassed=("dt_proj",),
    harmless=(  # of the state-spaces folders too, which name what they were trained with
        *("residual_in_fp32", "time_step_*", "use_mambapy", "use_associative_scan", "intermediate_size"),
        *("d_inner", "d_model", "n_layer", "ssm_cfg", "rms_norm", "fused_add_norm"),
        "pad_vocab_size_multiple",
    ),
    ignored_hf=(),
    spellings=(("backbone.embedding.", "backbone.embeddings."),),
    instead=lambda fields: "falcon_mamba" if fields.get(f"mamba.{DT_NORM}") is True else None,
)
