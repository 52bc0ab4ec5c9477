"""T5Gemma (2504.06225): an encoder and a decoder of Gemma 2's blocks; a decoder's have cross-attention too.

Each half has a config of Gemma 2's keys. Local layers of the encoder see a window to each side.
"""

from dataclasses import dataclass, replace
from typing import Any

from cutaway.model.block_config import Block
from cutaway.model.config import EncoderDecoder
from cutaway.model.kinds import mixer
from cutaway.weights import bidirectional_decoders, decoders, naming
from cutaway.weights.families import gemma2
from cutaway.weights.family import FLAG, HARMLESS_HF, Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule

HARMLESS = (*HARMLESS_HF, "dropout_rate", "cross_attention_hidden_size", "classifier_dropout_rate")
NORMS = {"self_attn": "attention", "cross_attn": "cross", "feedforward": "mlp"}
PROJECTIONS = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out"}


@dataclass(frozen=True)
class Half(Row):
    """The settings of one half, as Gemma 2's."""

    name: str

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        section = fields.section(self.name)
        if section is None:
            raise fields.refusal(self.name, "is missing: it should hold the keys of a Gemma 2")
        found: Settings = {"where": fields.where}
        for row in gemma2.FAMILY.rows:
            found |= row.read(section, found, gemma2.FAMILY)
        section.finish(HARMLESS, f"the {self.name}s of T5Gemma have")
        for name, value in gemma2.FAMILY.fixed.items():
            found[name] = value(found) if callable(value) else value
        return {self.name: found}

    def write(self, known: Settings, gguf: bool) -> Entries:
        entries: Entries = {}
        for row in gemma2.FAMILY.rows:
            entries |= row.write(known[self.name], gguf)
        return {self.name: entries}


class Vocab(Row):
    """The number of target tokens, which the config repeats."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        fields.only("vocab_size", (known["decoder"]["vocab"],), "a head of another size than the decoder's")
        return {}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"vocab_size": known["decoder"]["vocab"]}


def whole(window: int) -> int:
    """A window is seen to each side."""
    return window


def model(known: Settings) -> EncoderDecoder:
    """The model of these settings."""
    encoder = bidirectional_decoders.encoder(known["encoder"], whole)
    decoder = decoders.decoder(known["decoder"])
    memory = None if encoder.width == decoder.width else encoder.width

    def crossed(block: Block) -> Block:
        of: Any = block.attention
        sizes = {"heads": of.heads, "kv_heads": of.groups, "key_size": of.key_size, "scale": of.scale}
        more = {"softcap": of.softcap, "bias": of.bias, "out_bias": of.out_bias, "memory_width": memory}
        return replace(block, cross=mixer("cross", **sizes, **more))

    blocks = tuple(map(crossed, decoder.blocks))
    return EncoderDecoder(encoder, replace(decoder, blocks=blocks, tied=known["tied"]))


def settings(config: EncoderDecoder) -> Settings:
    """The settings of a config."""
    halves = {
        "encoder": bidirectional_decoders.settings(config.encoder, whole),
        "decoder": decoders.settings(replace(config.decoder, tied=True)),
    }
    halves["encoder"]["softcap"] = config.decoder.softcap
    return {**halves, "tied": config.decoder.tied, "both": True}


def _half(half: str, last: str) -> tuple[Rule, ...]:
    layer, ours = f"model.{half}.layers.{{n}}", f"{half}.blocks.{{n}}"
    return (
        *naming.weights(
            (f"model.{half}.embed_tokens", f"{half}.embedding"),
            (f"model.{half}.norm", f"{half}.{last}"),
            *((f"{layer}.mlp.{part}_proj", f"{ours}.mlp.{part}") for part in ("gate", "up", "down")),
            *((f"{layer}.pre_{theirs}_layernorm", f"{ours}.{kind}_norm") for theirs, kind in NORMS.items()),
            *(
                (f"{layer}.post_{theirs}_layernorm", f"{ours}.{kind}_post_norm")
                for theirs, kind in NORMS.items()
            ),
        ),
        *naming.pairs(
            *(
                (f"{layer}.{theirs}.{name}", f"{ours}.{NORMS[theirs]}.{part}")
                for theirs in ("self_attn", "cross_attn")
                for name, part in PROJECTIONS.items()
            )
        ),
    )


FAMILY = Family(
    "t5gemma",
    "T5GemmaForConditionalGeneration",
    hf=(
        *naming.one_more((*_half("encoder", "last_norm"), *_half("decoder", "norm"))),
        *naming.weights(("lm_head.out_proj", "decoder.head")),
    ),
    gguf=(),
    rows=(
        Half("encoder"),
        Half("decoder"),
        Vocab(),
        Field("tied", "tie_word_embeddings", None, FLAG),
        Field("both", "is_encoder_decoder", None, FLAG),
        Only("is_encoder_decoder", None, (True,), "one half alone"),
        Only("add_cross_attention", None, (False,), "another cross-attention"),
        Only("is_causal", None, (), "another order of reading than each half's"),
    ),
    build=model,
    describe=settings,
    defaults={"tied": True, "both": True},
    config=EncoderDecoder,
    harmless=("dropout_rate", "classifier_dropout_rate"),
)
