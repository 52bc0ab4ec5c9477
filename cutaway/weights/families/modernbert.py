"""ModernBERT (2412.13663): an encoder of a decoder's blocks, which rotate, with one global layer in three.

The first layer's attention has no norm of its own, because one follows the embeddings.
"""

from dataclasses import replace

import numpy as np

from cutaway.attention import bidirectional
from cutaway.errors import UserError
from cutaway.layers.config import MLP, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.position import rope
from cutaway.weights import decoders, naming, rotary, rows
from cutaway.weights.classifier_head import Head
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
from cutaway.weights.rows import FULL, SLIDING
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import split

ALIASES = ("modern-bert",)
WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
BASES = {FULL: ("global_rope_theta", 160_000.0), SLIDING: ("local_rope_theta", 10_000.0)}
NAMES = {FULL: "rope", SLIDING: "local_rope"}
LAYER, MLP_OF = "model.layers.{n}", "blocks.{n}.mlp"


HEAD = Head(
    "head.dense", ("classifier_activation", "gelu"), norm="head.norm", others=("cls", "mean"), of_tokens=True
)


class Gate(Field):
    """llama.cpp has two, and takes GELU for a word that it does not know."""

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf and known["activation"] not in ("gelu", "silu"):
            raise UserError(f"an MLP gated by {known['activation']} is not supported in GGUF")
        return super().write(known, gguf)


class Layers(Row):
    """Which layers see all tokens, and how far to both sides the others see."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return self._from_gguf(fields, known["layers"])
        layers, key = known["layers"], "global_attn_every_n_layers"
        every = fields.integer(key) if fields.stated(key) else 3
        kinds = fields.each_layer("layer_types", layers, (SLIDING, FULL))
        kinds = kinds or [SLIDING if n % every else FULL for n in range(layers)]
        width = fields.integer("local_attention", low=2) if fields.stated("local_attention") else 128
        return {"reaches": tuple(width // 2 if kind == SLIDING else None for kind in kinds)}

    def _from_gguf(self, fields: Fields, layers: int) -> Settings:
        """Half a window is seen to both sides; a pattern counts from a global layer on, or lists them all."""
        window = fields.integer(WINDOW, None)
        stated = fields.get(PATTERN)
        if isinstance(stated, np.ndarray):
            if stated.dtype != np.bool_ or len(stated) != layers:
                raise fields.refusal(PATTERN, f"should be a flag for each of {layers} layers")
            near = stated.tolist()
        else:
            every = fields.integer(PATTERN, 3)
            near = [n % every != 0 for n in range(layers)]
        return {"reaches": tuple(window // 2 if window and one else None for one in near)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            near = [reach is not None for reach in known["reaches"]]
            if all(near):
                raise UserError("an encoder without a layer that sees all tokens is not supported in GGUF")
            window = {WINDOW: 2 * next(filter(None, known["reaches"]), 0)}
            return window | {PATTERN: np.array(near)} if any(near) else {}
        kinds = [FULL if reach is None else SLIDING for reach in known["reaches"]]
        return {"layer_types": kinds, "local_attention": 2 * next(filter(None, known["reaches"]), 64)}


class Ropes(Row):
    """Rotary positions of global and of local layers, whose bases older files have beside each other."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            far = rotary.Rope().read(fields, known, own)["rope"]
            base = fields.number("rope.freq_base_swa", far.base, 1.0)
            return {"rope": far, "local_rope": rope.Config(known["head_size"], base)}
        given = fields.section("rope_parameters")
        found = {}
        for kind, (key, usual) in BASES.items():
            base = fields.number(key, low=1.0) if fields.stated(key) else usual
            section = given.section(kind) if given else None
            found[NAMES[kind]] = rotary.Rope().of_kind(section, known, base)
        if given:
            given.finish((), "ModernBERT's rotary positions have")
        return found

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf:
            far, near = (known[name] or rope.Config(known["head_size"]) for name in NAMES.values())
            entries = rotary.Rope().write(known | {"rope": far}, gguf) | {"rope.scaling.type": "none"}
            return entries | {"rope.freq_base_swa": float(near.base)}
        sections = {kind: known[name] for kind, name in NAMES.items() if known[name]}
        return {"rope_parameters": {kind: rotary.hf_section(of) for kind, of in sections.items()}}


def encoder(known: Settings) -> Encoder:
    """The encoder of these settings."""
    norm = Norm("layer", known["eps"], bias=known["norm_bias"])
    mlp = MLP(known["hidden"], known["activation"], bias=known["mlp_bias"])

    def block(reach: int | None) -> Block:
        attention = bidirectional.Config(
            heads=known["heads"],
            kv_heads=known["heads"],
            key_size=known["head_size"],
            position=known[NAMES[FULL if reach is None else SLIDING]],
            bias=known["bias"],
            out_bias=known["bias"],
            reach=reach,
        )
        return Block(attention, mlp, norm)

    first, *rest = map(block, known["reaches"])
    return Encoder(
        known["vocab"],
        known["width"],
        known["context"],
        (replace(first, attention_normed=False), *rest),
        norm,
        segments=0,
        learned=False,
        norm_first=True,
    )


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config."""
    assert isinstance(config, Encoder)  # the family's ``config``
    each = [block.attention for block in config.blocks]
    far, near = (
        next((one.position for one in each if (one.reach is None) == all_of_it), None)
        for all_of_it in (True, False)
    )
    return decoders.settings(config) | {
        "reaches": tuple(attention.reach for attention in each),
        "norm_bias": config.norm.bias,
        "rope": far,
        "local_rope": near,
    }


FAMILY = Family(
    "modernbert",
    "ModernBertModel",
    hf=(
        *naming.pairs(
            ("model.embeddings.norm", "norm"),
            ("model.final_norm", "last_norm"),
            (f"{LAYER}.attn_norm", "blocks.{n}.attention_norm"),
            (f"{LAYER}.mlp_norm", "blocks.{n}.mlp_norm"),
            (f"{LAYER}.attn.Wo", "blocks.{n}.attention.out"),
            (f"{LAYER}.mlp.Wo", "blocks.{n}.mlp.down"),
        ),
        *naming.weights(("model.embeddings.tok_embeddings", "embedding")),
        *(
            rule
            for part in ("weight", "bias")
            for rule in (
                Rule(f"{LAYER}.attn.Wqkv.{part}", naming.query_key_value(part), split),
                Rule(
                    f"{LAYER}.mlp.Wi.{part}",
                    tuple(f"blocks.{{n}}.mlp.{n}.{part}" for n in ("gate", "up")),
                    split,
                ),
            )
        ),
    ),
    gguf=(
        *naming.weights(
            ("token_embd", "embedding"),
            ("token_embd_norm", "norm"),
            ("output_norm", "last_norm"),
            naming.GGUF_OUT,
            naming.GGUF_MLP[2],
        ),
        *naming.GGUF_NORMS,
        Rule("blk.{n}.attn_qkv.weight", naming.query_key_value("weight"), split),
        Rule("blk.{n}.ffn_up.weight", tuple(f"{MLP_OF}.{name}.weight" for name in ("gate", "up")), split),
    ),
    rows=(
        Field("layers", "num_hidden_layers", "block_count", LAYER_COUNT),
        rows.Vocab("vocab", "vocab_size", "vocab_size"),
        Field("width", "hidden_size", "embedding_length"),
        Field("context", "max_position_embeddings", "context_length"),
        Field("heads", "num_attention_heads", "attention.head_count", each_layer=True),
        Only(None, "attention.causal", (False,), "attention to earlier tokens alone"),
        Field("head_size", None, None),
        Field("hidden", "intermediate_size", "feed_forward_length", each_layer=True),
        Field("eps", "norm_eps", "attention.layer_norm_epsilon", NUMBER),
        Field("norm_bias", "norm_bias", None, FLAG),
        Field("bias", "attention_bias", None, FLAG),
        Field("mlp_bias", "mlp_bias", None, FLAG),
        Gate("activation", "hidden_activation", "hidden_activation", rows.ACTIVATION, missing="gelu"),
        Layers(),
        Ropes(),
        Only("rope_scaling", None, (None,), "the older layout of scaled positions"),
        *rows.ANY,
    ),
    build=encoder,
    describe=settings,
    defaults={"vocab": 50368, "width": 768, "hidden": 1152, "layers": 22, "heads": 12, "context": 8192}
    | {"eps": 1e-5, "norm_bias": False, "bias": False, "mlp_bias": False, "activation": "gelu"}
    | {"head_size": shared, "rope_base": BASES[FULL][1]},
    gguf_fixed={"head_size": shared, "norm_bias": False, "bias": False, "mlp_bias": False},
    architecture="modern-bert",
    head=HEAD,
    config=Encoder,
    harmless=(
        *("classifier_*", "decoder_bias", "deterministic_flash_attn", "sparse_pred*", "tie_word_embeddings"),
        *("initializer_cutoff_factor", "embedding_dropout", "mlp_dropout", "reference_compile"),
        *("position_embedding_type", "layer_norm_eps", "repad_logits_with_grad"),
    ),
    ignored_hf=("head.*", "decoder.*", "classifier.*"),
)
