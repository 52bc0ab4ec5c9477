"""EmbeddingGemma (2509.20354): Gemma 3 whose tokens see both sides; local layers half a window to each.

Its config is Gemma 3's with a flag. The dense layers after its pooling are in folders of their own
(weights/pooling.py).
"""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

from cutaway.attention import bidirectional
from cutaway.attention.common.heads import Heads
from cutaway.errors import UserError
from cutaway.model.config import Decoder, Encoder
from cutaway.weights import decoders, rows
from cutaway.weights.families import gemma3
from cutaway.weights.family import FLAG, Entries, Field, Only, Settings
from cutaway.weights.rules import Rule

ALIASES = ("gemma-embedding",)


def _changed(config: Decoder | Encoder, change: Callable[[Any], Any]) -> tuple[Any, ...]:
    return tuple(replace(block, attention=change(block.attention)) for block in config.blocks)


def _shared(attention: Heads) -> dict[str, Any]:
    return {field.name: getattr(attention, field.name) for field in fields(Heads)}


def encoder(known: Settings) -> Encoder:
    """The encoder of these settings."""
    of = decoders.decoder(known)

    def both_sides(attention: Heads) -> Heads:
        window = decoders.window_of(attention)
        reach = None if window is None else window // 2
        return bidirectional.Config(kv_heads=attention.groups, reach=reach, **_shared(attention))

    return Encoder(
        of.vocab,
        of.width,
        of.context,
        _changed(of, both_sides),
        of.norm,
        segments=0,
        learned=False,
        norm_first=True,
        embedding_norm=False,
        embedding_scale=of.embedding_scale,
    )


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""

    def past_alone(attention: Any) -> Heads:
        window = None if attention.reach is None else 2 * attention.reach
        own = {name: value for name, value in _shared(attention).items() if name != "heads"}
        return decoders.heads(attention.heads, attention.groups, window, **own)

    of = Decoder(config.vocab, config.width, config.context, _changed(config, past_alone), config.norm)
    return decoders.settings(of) | {"both_sides": True, "softcap": None}


def last_norm(rules: Iterable[Rule], theirs: str) -> tuple[Rule, ...]:
    """The rules, where the norm after the last block has an encoder's name."""
    return tuple(
        replace(rule, ours=rule.ours.replace("norm.", "last_norm."))
        if rule.theirs.startswith(theirs)
        else rule
        for rule in rules
        if isinstance(rule.ours, str)
    )


class LayerTypes(rows.LayerTypes):
    """llama.cpp ends the process at a model that has no local layer, and at one that has no global layer."""

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf and not any(known["windows"]):
            raise UserError("an EmbeddingGemma without local layers is not supported in GGUF")
        if gguf and all(known["windows"]):
            raise UserError("an EmbeddingGemma without global layers is not supported in GGUF")
        return super().write(known, gguf)


FAMILY = gemma3.FAMILY.but(
    "embedding_gemma",
    "Gemma3TextModel",
    hf_type="gemma3_text",
    hf=last_norm(gemma3.FAMILY.hf, "model.norm."),
    gguf=last_norm(gemma3.FAMILY.gguf, "output_norm."),
    rows=(
        *(
            LayerTypes(pattern=6) if isinstance(row, rows.LayerTypes) else row
            for row in gemma3.FAMILY.rows
            if getattr(row, "hf", "") not in ("use_bidirectional_attention", "is_causal")
        ),
        Only("is_causal", "attention.causal", (False,), "attention to earlier tokens alone"),
        Field("both_sides", "use_bidirectional_attention", None, FLAG),
    ),
    gguf_fixed={"scale": None},
    architecture="gemma-embedding",
    ignored_gguf=("dense_2.weight", "dense_3.weight"),  # which weights/pooling.py reads
    build=encoder,
    describe=settings,
    config=Encoder,
    instead=None,
)
