"""RecurrentGemma (2404.07839): Griffin's recurrent unit in two layers of three, local attention in the third.

The MLP is half as wide as its config says, and everything but queries, keys and values has a bias.
"""

from __future__ import annotations

from cutaway.errors import UserError, quoted
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.model.kinds import kind_of, mixer
from cutaway.weights import decoders, naming, rotary, rows
from cutaway.weights.families import gemma, llama
from cutaway.weights.family import FLAG, NUMBER, Entries, Family, Field, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import in_groups, kernel, same

OURS, LAYER = "blocks.{n}.attention", "model.layers.{n}"
TEMPORAL = f"{LAYER}.temporal_block"
KINDS = {"recurrent": True, "attention": False}


def is_recurrent(block: Block) -> bool:
    """Whether a layer's mixer is the recurrent unit."""
    return kind_of(block.attention) == "rg_lru"


def attends(block: Block) -> bool:
    """Whether a layer's mixer is attention."""
    return not is_recurrent(block)


class Mixers(Row):
    """Which layers are recurrent: a pattern that repeats."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        words = fields.get("block_types") if fields.stated("block_types") else None
        pattern = ["recurrent", "recurrent", "attention"] if words is None else words
        if not isinstance(pattern, list) or not pattern:
            raise fields.refusal("block_types", f"should list kinds of layers, but is {quoted(pattern)}")
        for word in pattern:
            if not isinstance(word, str) or word not in KINDS:
                raise fields.refusal("block_types", f"has {quoted(word)}, not one of {', '.join(KINDS)}")
        times = -(-known["layers"] // len(pattern))
        if times > 100:  # which is how often transformers repeats it
            raise fields.refusal("block_types", f"does not fill {known['layers']} layers")
        recurrent = [KINDS[word] for word in pattern * times][: known["layers"]]
        return {"recurrent": tuple(recurrent)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        words = {there: word for word, there in KINDS.items()}
        return {} if gguf else {"block_types": [words[there] for there in known["recurrent"]]}


class Hidden(Field):
    """The width of the MLP; config.json has twice of it."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        double = fields.integer("intermediate_size") if fields.stated("intermediate_size") else 7680
        return {"hidden": double // 2}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {} if gguf else {"intermediate_size": 2 * known["hidden"]}


class Rope(rotary.Rope):
    """Rotary positions, which nothing scales."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        found = super().read(fields, known, own)
        if found["rope"].scaling is not None:
            raise fields.refusal("rope_parameters", "scales positions, which is not supported here")
        return found


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    channels, heads = known["channels"], known["heads"]
    if channels % heads:
        raise UserError(f"lru_width {channels} cannot be shared evenly by {heads} heads")
    unit = mixer("rg_lru", heads=heads, channels=channels, conv=known["conv"], activation=known["activation"])
    return decoders.decoder(
        known | {"mixers": tuple(unit if recurrent else None for recurrent in known["recurrent"])}
    )


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config; UserError if none of its layers is the recurrent unit."""
    recurrent = tuple(map(is_recurrent, config.blocks))
    units = [block.attention for block in config.blocks if is_recurrent(block)]
    if not units:
        raise UserError("none of its layers is the recurrent unit")
    heads = units[0].heads
    known: Settings = {"heads": heads, "kv_heads": heads, "head_size": config.width // heads, "bias": False}
    known["rope"] = None
    known |= {name: value for name, value in decoders.settings(config).items() if value is not None}
    windows = [window for window in known["windows"] if window is not None]
    own = {"recurrent": recurrent, "channels": units[0].channels, "conv": units[0].conv}
    return known | own | {"window": windows[0] if windows else 2048}


FAMILY = llama.FAMILY.but(
    "recurrent_gemma",
    "RecurrentGemmaForCausalLM",
    hf=(
        *naming.of_layers(
            naming.renamed(
                naming.one_more(naming.HF_DECODER),
                (".self_attn.", ".temporal_block."),
                ("input_layernorm", "temporal_pre_norm"),
                ("post_attention_layernorm", "channel_pre_norm"),
                (".mlp.", ".mlp_block."),
                ("model.norm.", "model.final_norm."),
            ),
            attends,
            naming.MIXER,
        ),
        *(
            Rule(f"{TEMPORAL}.{theirs}.{part}", f"{OURS}.{ours}.{part}", same, is_recurrent)
            for theirs, ours in (("linear_x", "value"), ("linear_y", "gate"), ("linear_out", "out"))
            for part in ("weight", "bias")
        ),
        Rule(f"{TEMPORAL}.conv_1d.weight", f"{OURS}.conv.weight", kernel, is_recurrent),
        Rule(f"{TEMPORAL}.conv_1d.bias", f"{OURS}.conv.bias", same, is_recurrent),
        Rule(f"{TEMPORAL}.rg_lru.recurrent_param", f"{OURS}.decay", same, is_recurrent),
        *(
            Rule(f"{TEMPORAL}.rg_lru.{name}_gate_{part}", f"{OURS}.{name}_gate.{part}", how, is_recurrent)
            for name in ("input", "recurrent")
            for part, how in (("weight", same), ("bias", in_groups))
        ),
    ),
    gguf=(),
    rows=(
        *rows.replaced(
            rows.SIZES,
            Rope(part=0.5),
            Field("activation", "hidden_activation", None, rows.ACTIVATION),
        ),
        Hidden("hidden", "intermediate_size", None),
        Field("window", "attention_window_size", None, alias="sliding_window"),
        Field("channels", "lru_width", None),
        Field("conv", "conv1d_width", None),
        Field("softcap", "logits_soft_cap", None, NUMBER),
        Field("bias", "attention_bias", None, FLAG),
        Mixers(),
    ),
    build=decoder,
    describe=settings,
    defaults={"vocab": 256_000, "width": 2560, "layers": 26, "heads": 10, "kv_heads": lambda k: k["heads"]}
    | {"eps": 1e-6, "activation": "gelu_tanh", "tied": True, "window": 2048, "conv": 4, "softcap": 30.0}
    | {"channels": lambda known: known["width"], "context": 1 << 20},
    nulls={"channels": lambda known: known["width"]},
    fixed={"out_bias": True, "mlp_bias": True, "embedding_scale": gemma.embedding_scale},
    forget=("head_size",),
    mixers=("rg_lru", "local"),
    harmless=("w_init_variance_scale", "final_w_init_variance_scale", "hidden_act"),
)
