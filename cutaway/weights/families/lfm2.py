"""LFM2 (2511.23404): gated short convolutions in most layers, attention with normed heads in some.

The norm before the head is called that of the embeddings.
"""

from cutaway.errors import UserError
from cutaway.layers.config import Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.model.kinds import kind_of, mixer
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families import llama
from cutaway.weights.family import FLAG, NUMBER, Entries, Family, Field, FolderRow, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rows import FULL
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import kernel, same, split

CONV = "conv"
OURS, THEIRS = "blocks.{n}.attention", "model.layers.{n}"


def is_conv(block: Block) -> bool:
    """Whether a layer's mixer is the short convolution."""
    return kind_of(block.attention) == "short_conv"


def attends(block: Block) -> bool:
    """Whether a layer's mixer is attention."""
    return not is_conv(block)


PARTS = ("key", "query", "value")
HF_MIXERS = (
    *(
        Rule(f"{THEIRS}.self_attn.{theirs}.weight", f"{OURS}.{ours}.weight", same, attends)
        for theirs, ours in (
            *((f"{name[0]}_proj", name) for name in ("query", "key", "value")),
            ("out_proj", "out"),
            ("q_layernorm", "query_norm"),
            ("k_layernorm", "key_norm"),
        )
    ),
    *(
        rule
        for part in ("weight", "bias")
        for rule in (
            Rule(f"{THEIRS}.conv.in_proj.{part}", tuple(f"{OURS}.{n}.{part}" for n in PARTS), split, is_conv),
            Rule(f"{THEIRS}.conv.out_proj.{part}", f"{OURS}.out.{part}", same, is_conv),
        )
    ),
    Rule(f"{THEIRS}.conv.conv.weight", f"{OURS}.conv.weight", kernel, is_conv),
    Rule(f"{THEIRS}.conv.conv.bias", f"{OURS}.conv.bias", same, is_conv),
)
HF = (
    *naming.renamed(
        naming.HF_DECODER,
        ("input_layernorm", "operator_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "feed_forward.w1"),
        ("mlp.up_proj", "feed_forward.w3"),
        ("mlp.down_proj", "feed_forward.w2"),
        ("model.norm.", "model.embedding_norm."),
        without=("self_attn",),
    ),
    *HF_MIXERS,
)


GGUF = (
    *naming.weights(("token_embd", "embedding"), ("output", "head"), ("token_embd_norm", "norm")),
    *naming.GGUF_NORMS,
    *naming.weights(*naming.GGUF_MLP),
    *naming.of_layers((*naming.GGUF_ATTENTION, *naming.GGUF_QK_NORM), attends),
    Rule("blk.{n}.shortconv.in_proj.weight", tuple(f"{OURS}.{n}.weight" for n in PARTS), split, is_conv),
    Rule("blk.{n}.shortconv.out_proj.weight", f"{OURS}.out.weight", same, is_conv),
    Rule("blk.{n}.shortconv.conv.weight", f"{OURS}.conv.weight", same, is_conv),
)


class KeyValueHeads(rows.HybridKeyValueHeads):
    """No heads where a layer convolves."""

    others = "convolves"

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf and known["heads"] * known["head_size"] != known["width"]:
            raise UserError("heads that are not as wide together as the model is not supported in GGUF")
        return super().write(known, gguf)


class Mixers(FolderRow):
    """Which layers attend: a list of all, or of the indices of those that do."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers = known["layers"]
        kinds = fields.each_layer("layer_types", layers, (CONV, FULL))
        attending = fields.indices("full_attn_idxs", layers)
        if kinds is None and attending is not None:
            return {"convolves": tuple(n not in attending for n in range(layers))}
        return {"convolves": tuple(kind == CONV for kind in kinds or (FULL,) * layers)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"layer_types": [CONV if conv else FULL for conv in known["convolves"]]}


class Hidden(Row):
    """The MLP's size, which transformers takes two thirds of, rounded up, unless the config says no."""

    name = "hidden"

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {
                "hidden": fields.same("feed_forward_length", known["layers"]).integer("feed_forward_length")
            }
        hidden = fields.integer("block_ff_dim", None) or fields.integer("intermediate_size", 12288)
        fields.get("intermediate_size")
        factor = fields.number("block_ffn_dim_multiplier", 1.0)
        whole = fields.integer("block_multiple_of", 256)
        if fields.flag("block_auto_adjust_ff_dim", True):
            hidden = -(-int(factor * int(2 * hidden / 3)) // whole) * whole
        return {"hidden": hidden}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            return {"feed_forward_length": known["hidden"]}
        return {"intermediate_size": known["hidden"], "block_auto_adjust_ff_dim": False}


class Convolution(Field):
    """How many tokens a convolution reads; llama.cpp keeps one at least."""

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf and known["conv"] < 2:
            raise UserError("a convolution over one token is not supported in GGUF")
        return super().write(known, gguf)


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    conv = mixer("short_conv", channels=known["width"], conv=known["conv"], bias=known["conv_bias"])
    attention = decoders.heads(**decoders.shape(known), qk_norm=Norm("rms", known["eps"]))
    mixers = tuple(conv if convolves else attention for convolves in known["convolves"])
    return decoders.decoder(known | {"mixers": mixers})


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    known = decoders.settings(config) | {"convolves": tuple(map(is_conv, config.blocks))}
    for block in filter(is_conv, config.blocks):
        known |= {"conv": block.attention.conv, "conv_bias": block.attention.bias}
    return known


FAMILY = llama.FAMILY.but(
    "lfm2",
    "Lfm2ForCausalLM",
    hf=HF,
    gguf=GGUF,
    rows=(
        *rows.replaced(
            rows.SIZES,
            Field("eps", "norm_eps", "attention.layer_norm_rms_epsilon", NUMBER),
            KeyValueHeads("kv_heads", "num_key_value_heads", "attention.head_count_kv"),
            without=("activation",),
        ),
        Hidden(),
        Convolution("conv", "conv_L_cache", "shortconv.l_cache"),
        Field("conv_bias", "conv_bias", None, FLAG),
        Mixers(),
    ),
    build=decoder,
    describe=settings,
    defaults={"conv": 3, "conv_bias": False, "rope_base": 1e6, "context": 128_000, "eps": 1e-5, "tied": True},
    fixed={"activation": "silu"},
    gguf_fixed={"conv_bias": False},
    harmless=("hidden_act",),  # which transformers does not read
    mixers=("short_conv", "mha", "gqa", "mqa"),
)
