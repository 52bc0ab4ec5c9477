"""T5 (1910.10683), T5 1.1 and Flan-T5: scores by learned biases of distances, which all layers share.

The first has ReLU and a head that is the embedding table, whose logits are divided by sqrt(d); 1.1 has gated
GELU and a head of its own. Scores are not scaled.
"""

from dataclasses import dataclass, replace

from cutaway.attention import bidirectional, mha
from cutaway.errors import UserError
from cutaway.layers.config import MLP, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder, EncoderDecoder
from cutaway.model.kinds import mixer
from cutaway.position import t5
from cutaway.weights import naming, rows
from cutaway.weights.family import (
    FLAG,
    LAYER_COUNT,
    NUMBER,
    Entries,
    Family,
    Field,
    Only,
    Row,
    Settings,
    shared,
)
from cutaway.weights.fields import Fields
from cutaway.weights.named_tensors import Tensors, multiplied
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

PROJECTIONS = {f"gated-{word}": (True, ours) for word, ours in rows.ACTIVATIONS.items()}
PROJECTIONS |= {word: (False, ours) for word, ours in rows.ACTIVATIONS.items()}
PROJECTIONS |= {"gated-gelu": (True, "gelu_tanh")}  # the one that is not what it says


def as_many(known: Settings) -> int:
    """As many layers of the decoder as of the encoder."""
    return known["layers"]


class DecoderLayers(Field):
    """llama.cpp opens none whose decoder is the deeper half."""

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf and known["decoder_layers"] > known["layers"]:
            raise UserError("a decoder of more layers than the encoder is not supported in GGUF")
        return super().write(known, gguf)


@dataclass(frozen=True)
class Projection(Row):
    """The MLP's activation and gate as one key, which older keys repeat; ``usual`` where it is absent."""

    name = "activation"

    usual: str = "relu"

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            gated = "enc.blk.0.ffn_gate.weight" in fields.tensors
            return {"gated": gated, "activation": "gelu_tanh" if gated else "relu"}
        gated, activation = fields.choice("feed_forward_proj", PROJECTIONS, self.usual)
        fields.only("is_gated_act", (gated,), "another MLP than feed_forward_proj's")
        words = [word for word, ours in rows.ACTIVATIONS.items() if ours == activation]
        fields.only("dense_act_fn", words, "another activation than feed_forward_proj's")
        return {"gated": gated, "activation": activation}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            return {}
        wanted = known["gated"], known["activation"]
        found = next((word for word, what in PROJECTIONS.items() if what == wanted), None)
        if found is None:
            raise UserError(f"T5 has no word for a gated {known['activation']}")
        return {"feed_forward_proj": found}


class Scaled(Row):
    """Whether the head reads x / sqrt(d): where it is the table, unless the config says otherwise."""

    name = "tied"

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {"tied": "output.weight" not in fields.tensors, "scaled": False}
        tied = fields.flag("tie_word_embeddings", True)
        stated = fields.stated("scale_decoder_outputs")
        return {"tied": tied, "scaled": fields.flag("scale_decoder_outputs") if stated else tied}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            return {}
        return {"tie_word_embeddings": known["tied"], "scale_decoder_outputs": known["scaled"]}


class Repeated(Row):
    """Keys of GGUF that repeat others, and the id that a text begins with, which is read apart."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            fields.only("attention.layer_norm_epsilon", (known["eps"],), "layer norms")
            fields.only("attention.head_count_kv", (known["heads"],), "fewer key-value heads than heads")
            fields.get("decoder_start_token_id")
        return {}


def folded(config: EncoderDecoder, tensors: Tensors) -> tuple[EncoderDecoder, Tensors, str]:
    """The same function with a head that needs no scale."""
    scale = config.decoder.logit_scale
    if scale == 1:
        return config, tensors, ""
    head = "decoder.head.weight"
    source = "embedding.weight" if config.decoder.tied else head
    new = replace(config, decoder=replace(config.decoder, tied=False, logit_scale=1.0))
    entries = Tensors({name: tensors.later(source if name == head else name) for name in new.weights()})
    note = f"the head is a matrix of its own, multiplied by {scale:.4g}, as GGUF has it"
    return new, multiplied(entries, {head: scale}), note


def encoder(known: Settings) -> Encoder:
    """The encoder of these settings."""
    sizes = {"heads": known["heads"], "key_size": known["head_size"], "scale": 1.0}
    table = t5.Config(known["buckets"], known["distance"], both_ways=True)
    norm = Norm("rms", known["eps"])
    reading = Block(
        bidirectional.Config(**sizes, kv_heads=known["heads"], relative=table),
        MLP(known["hidden"], known["activation"], known["gated"]),
        norm,
    )
    return Encoder(
        known["vocab"],
        known["width"],
        known["context"],
        (reading,) * known["layers"],
        norm,
        segments=0,
        learned=False,
        norm_first=True,
        embedding_norm=False,
        one_relative=True,
    )


def model(known: Settings) -> EncoderDecoder:
    """The model of these settings."""
    of = encoder(known)
    reading, width = of.blocks[0], known["width"]
    sizes = {"heads": known["heads"], "key_size": known["head_size"], "scale": 1.0}
    table = t5.Config(known["buckets"], known["distance"], both_ways=False)
    writing = Block(
        mha.Config(**sizes, relative=table),
        reading.mlp,
        reading.norm,
        cross=mixer("cross", **sizes, kv_heads=known["heads"]),
    )
    return EncoderDecoder(
        of,
        Decoder(
            of.vocab,
            width,
            of.context,
            (writing,) * known["decoder_layers"],
            of.norm,
            tied=known["tied"],
            logit_scale=width**-0.5 if known["scaled"] else 1.0,
            one_relative=True,
        ),
        shared=True,
    )


def settings_of_half(config: Encoder | Decoder) -> Settings:
    """The settings that one half has."""
    block = config.blocks[0]
    attention, mlp = block.attention, block.mlp
    assert isinstance(mlp, MLP)  # the config checks it
    table = attention.relative
    return {
        "vocab": config.vocab,
        "width": config.width,
        "context": config.context,
        "layers": len(config.blocks),
        "heads": attention.heads,
        "head_size": attention.key_size,
        "hidden": mlp.hidden,
        "activation": mlp.activation,
        "gated": mlp.gated,
        "eps": block.norm.eps,
        "buckets": getattr(table, "buckets", 32),
        "distance": getattr(table, "distance", 128),
    }


def settings(config: EncoderDecoder) -> Settings:
    """The settings of a config."""
    return settings_of_half(config.decoder) | {
        "layers": len(config.encoder.blocks),
        "decoder_layers": len(config.decoder.blocks),
        "tied": config.decoder.tied,
        "scaled": config.decoder.logit_scale != 1,
    }


def _half(half: str, last: str, mlp: int) -> tuple[Rule, ...]:
    """The names of one half, whose MLP is the sublayer of this number."""
    layer, ours = f"{half}.block.{{n}}.layer", f"{half}.blocks.{{n}}"
    parts = {"q": "query", "k": "key", "v": "value", "o": "out"}
    attention = {"SelfAttention": (0, "attention"), "EncDecAttention": (1, "cross")}
    return (
        *naming.weights(
            (f"{half}.final_layer_norm", f"{half}.{last}"),
            *(
                (f"{layer}.{n}.{name}.{theirs}", f"{ours}.{kind}.{part}")
                for name, (n, kind) in attention.items()
                for theirs, part in parts.items()
            ),
            (f"{layer}.0.layer_norm", f"{ours}.attention_norm"),
            *([(f"{layer}.1.layer_norm", f"{ours}.cross_norm")] if mlp == 2 else []),
            (f"{layer}.{mlp}.layer_norm", f"{ours}.mlp_norm"),
            (f"{layer}.{mlp}.DenseReluDense.wi_0", f"{ours}.mlp.gate"),
            (f"{layer}.{mlp}.DenseReluDense.wo", f"{ours}.mlp.down"),
        ),
        *(
            Rule(f"{layer}.{mlp}.DenseReluDense.{name}.weight", f"{ours}.mlp.up.weight", same, when)
            for name, when in (("wi", _plain), ("wi_1", lambda block: not _plain(block)))
        ),
        Rule(
            f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            f"{half}.blocks.0.attention.relative.weight",
            same,
        ),
    )


def _gguf_half(theirs: str, ours: str, last: str, more: tuple[tuple[str, str], ...] = ()) -> tuple[Rule, ...]:
    """GGUF's names of one half."""
    parts = {"q": "query", "k": "key", "v": "value", "o": "out"}
    layer, own = f"{theirs}.blk.{{n}}", f"{ours}.blocks.{{n}}"
    kinds = (("attn", "attention"), *more)
    return (
        *naming.weights(
            (f"{theirs}.output_norm", f"{ours}.{last}"),
            *(
                (f"{layer}.{name}_{each}", f"{own}.{kind}.{part}")
                for name, kind in kinds
                for each, part in parts.items()
            ),
            *((f"{layer}.{name}_norm", f"{own}.{kind}_norm") for name, kind in (*kinds, ("ffn", "mlp"))),
            *((f"{layer}.ffn_{part}", f"{own}.mlp.{part}") for part in ("gate", "up", "down")),
            (f"{theirs}.blk.0.attn_rel_b", f"{ours}.blocks.0.attention.relative"),
        ),
    )


def _plain(block: Block) -> bool:
    """Whether its MLP has no gate."""
    return isinstance(block.mlp, MLP) and not block.mlp.gated


FAMILY = Family(
    "t5",
    "T5ForConditionalGeneration",
    hf=(
        *naming.weights(("shared", "embedding"), ("lm_head", "decoder.head")),
        *_half("encoder", "last_norm", 1),
        *_half("decoder", "norm", 2),
    ),
    gguf=(
        *naming.weights(("token_embd", "embedding"), ("output", "decoder.head")),
        *_gguf_half("enc", "encoder", "last_norm"),
        *_gguf_half("dec", "decoder", "norm", (("cross_attn", "cross"),)),
    ),
    folded=folded,
    rows=(
        Field("layers", "num_layers", "block_count", LAYER_COUNT, alias="num_hidden_layers"),
        DecoderLayers(
            "decoder_layers", "num_decoder_layers", "decoder_block_count", LAYER_COUNT, missing=as_many
        ),
        rows.Vocab("vocab", "vocab_size", "vocab_size"),
        Field("width", "d_model", "embedding_length", alias="hidden_size"),
        Field("context", "n_positions", "context_length"),
        Field("heads", "num_heads", "attention.head_count", alias="num_attention_heads", each_layer=True),
        rows.HeadSize("head_size", "d_kv", "attention.key_length", missing=shared, alias="head_dim"),
        Field("hidden", "d_ff", "feed_forward_length", each_layer=True),
        Field("buckets", "relative_attention_num_buckets", "attention.relative_buckets_count"),
        Field("distance", "relative_attention_max_distance", None),
        Field("eps", "layer_norm_epsilon", "attention.layer_norm_rms_epsilon", NUMBER),
        Repeated(),
        Projection(),
        Scaled(),
        Field("both", "is_encoder_decoder", None, FLAG),
        Only("is_encoder_decoder", None, (True,), "one half alone"),
        Only("is_decoder", None, (False,), "its decoder alone"),
        Only("add_cross_attention", None, (False,), "another cross-attention"),
        Only("is_causal", None, (), "another order of reading than each half's"),
    ),
    build=model,
    describe=lambda config: settings(config) | {"both": True},
    defaults={"vocab": 32128, "width": 512, "head_size": 64, "hidden": 2048, "layers": 6, "heads": 8}
    | {"context": 512, "buckets": 32, "distance": 128, "eps": 1e-6, "both": True}
    | {"decoder_layers": as_many},
    nulls={"decoder_layers": as_many},
    gguf_fixed={"distance": 128, "scaled": False},  # llama.cpp's
    config=EncoderDecoder,
    instead=lambda fields: "t5_encoder" if fields.get("architectures") == ["T5EncoderModel"] else None,
    prefix="",
    harmless=("dropout_rate", "classifier_dropout", "output_past"),
    ignored_hf=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
    copies=(
        ("encoder.embed_tokens.weight", "shared.weight"),
        ("decoder.embed_tokens.weight", "shared.weight"),
    ),
)
