"""OLMo Hybrid (2026): three layers of gated delta rule, normed before each half, to one of OLMo 2's.

The delta rule has a convolution for each of query, key and value, and betas up to 2. Attention need not
rotate.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import Packed
from cutaway.layers.config import MLP, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.model.kinds import mixer
from cutaway.weights import decoders, naming, rotary, rows
from cutaway.weights.families import llama
from cutaway.weights.families.qwen3_next import LINEAR, is_linear
from cutaway.weights.family import FLAG, Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rows import FULL
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import kernel, same

OURS, LAYER = "blocks.{n}.attention", "model.layers.{n}"
THEIRS = f"{LAYER}.linear_attn"
PARTS = ("query", "key", "value")
INNER = Norm("rms", 1e-5)  # of the delta rule's heads, whatever the config says


def attends(block: Block) -> bool:
    """Whether a layer's mixer is attention."""
    return not is_linear(block)


class Layers(Row):
    """Which layers are linear, and the sizes of those."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers, heads = known["layers"], known["heads"]
        usual = [FULL if n % 4 == 3 else LINEAR for n in range(layers)]
        usual[-1] = usual[-1] if FULL in usual else FULL
        kinds = fields.each_layer("layer_types", layers, (LINEAR, FULL)) or usual
        if len(set(kinds)) < 2:
            raise fields.refusal("layer_types", "should name layers of both kinds")
        counts = {
            name: fields.integer(f"linear_num_{name}_heads", None) or heads for name in ("key", "value")
        }
        size = fields.integer("linear_key_head_dim", None) or int(0.75 * known["width"] / counts["key"])
        value = fields.integer("linear_value_head_dim", None) or 2 * size
        found = {"linear": tuple(kind == LINEAR for kind in kinds), "linear_heads": counts["value"]}
        return found | {"linear_keys": counts["key"], "linear_key_size": size, "linear_value_size": value}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {
            "layer_types": [LINEAR if linear else FULL for linear in known["linear"]],
            "linear_num_key_heads": known["linear_keys"],
            "linear_num_value_heads": known["linear_heads"],
            "linear_key_head_dim": known["linear_key_size"],
            "linear_value_head_dim": known["linear_value_size"],
        }


class Rope(rotary.Rope):
    """A base of null means that no layer rotates."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        given = fields.section("rope_parameters")
        if given is None or not given.has("rope_theta") or given.get("rope_theta") is not None:
            return super().read(fields, known, own)
        if given.get("rope_type") not in (None, "default"):
            raise given.refusal("rope_theta", "is null, but its type scales positions")
        for key in ("rope_theta", "rope_scaling"):
            if fields.get(key) is not None:
                raise fields.refusal(key, "is not read where rope_parameters says that nothing rotates")
        given.finish((), "layers that do not rotate have")
        return {"rope": None}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if known["rope"] is None:
            return {"rope_parameters": {"rope_type": "default", "rope_theta": None}}
        return super().write(known, gguf)


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    norm, mlp = Norm("rms", known["eps"]), MLP(known["hidden"], "silu")
    delta = mixer(
        "gated_delta",
        heads=known["linear_heads"],
        key_heads=known["linear_keys"],
        key_size=known["linear_key_size"],
        value_size=known["linear_value_size"],
        conv=known["conv"],
        norm=INNER,
        apart=True,
        negative=known["negative"],
    )
    attention = decoders.heads(
        **decoders.shape(known),
        qk_norm=norm,
        qk_norm_over="width",
        bias=known["bias"],
        out_bias=known["out_bias"],
    )
    kinds = {
        True: Block(delta, mlp, norm),
        False: Block(attention, mlp, norm, post_norm=True, pre_norm=False),
    }
    blocks = tuple(kinds[linear] for linear in known["linear"])
    return Decoder(known["vocab"], known["width"], known["context"], blocks, norm, known["tied"])


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config; UserError unless it has layers of both kinds."""
    linear = tuple(map(is_linear, config.blocks))
    if len(set(linear)) < 2:
        raise UserError("its layers are of one kind")
    of: Any = config.blocks[linear.index(True)].attention
    return decoders.settings(config) | {
        "linear": linear,
        "linear_heads": of.heads,
        "linear_keys": of.groups,
        "linear_key_size": of.key_size,
        "linear_value_size": of.values,
        "conv": of.conv,
        "negative": of.negative,
    }


def recut(theirs: dict[str, Packed], config: Any) -> dict[str, Packed]:
    """The convolutions by their sizes; transformers writes three of one size."""
    theirs = dict(theirs)
    for n, block in enumerate(config.blocks):
        names = [f"{THEIRS}.{part[0]}_conv1d.weight".replace("{n}", str(n)) for part in PARTS]
        found = [theirs.get(name) for name in names]
        if not is_linear(block) or any(each is None for each in found):
            continue
        keys, values = block.attention.groups * block.attention.key_size, block.attention.heads
        ends = np.cumsum([keys, keys, values * block.attention.values]).tolist()
        if sum(each.shape[0] for each in found if each) != ends[-1] or len({e.type for e in found if e}) > 1:
            continue  # which is refused by its shape, or its type
        rows = np.concatenate([each.data for each in found if each])
        for name, start, end in zip(names, [0, *ends], ends, strict=False):
            theirs[name] = Packed(found[0].type, (end - start, *found[0].shape[1:]), rows[start:end])  # type: ignore[union-attr]
    return theirs


FAMILY = llama.FAMILY.but(
    "olmo_hybrid",
    "OlmoHybridForCausalLM",
    hf=(
        *naming.renamed(naming.HF_DECODER, without=("self_attn", "layernorm")),
        *naming.of_layers(
            (
                *(rule for rule in naming.HF_DECODER if "self_attn" in rule.theirs),
                *naming.HF_QK_NORM,
                *naming.weights(
                    (f"{LAYER}.feedforward_layer_norm", "blocks.{n}.attention_post_norm"),
                    (f"{LAYER}.post_feedforward_layernorm", "blocks.{n}.mlp_post_norm"),
                ),
            ),
            attends,
        ),
        *naming.of_layers(
            (
                *naming.weights(
                    (f"{LAYER}.attention_layer_norm", "blocks.{n}.attention_norm"),
                    (f"{LAYER}.feedforward_layer_norm", "blocks.{n}.mlp_norm"),
                    *((f"{THEIRS}.{part[0]}_proj", f"{OURS}.{part}") for part in PARTS),
                    (f"{THEIRS}.a_proj", f"{OURS}.forget"),
                    (f"{THEIRS}.b_proj", f"{OURS}.beta"),
                    (f"{THEIRS}.g_proj", f"{OURS}.gate"),
                    (f"{THEIRS}.o_proj", f"{OURS}.out"),
                    (f"{THEIRS}.o_norm", f"{OURS}.norm"),
                ),
                Rule(f"{THEIRS}.A_log", f"{OURS}.decay.A_log", same),
                Rule(f"{THEIRS}.dt_bias", f"{OURS}.decay.dt_bias", same),
                *(
                    Rule(f"{THEIRS}.{part[0]}_conv1d.weight", f"{OURS}.conv.{part}.weight", kernel)
                    for part in PARTS
                ),
            ),
            is_linear,
        ),
    ),
    gguf=(),
    rows=(
        *rows.replaced(rows.SIZES, Rope(), without=("activation",)),
        Only("hidden_act", None, ("silu",), "another activation"),
        Field("hidden", "intermediate_size", None),
        *rows.biases("attention_bias"),
        Field("conv", "linear_conv_kernel_dim", None),
        Field("negative", "linear_allow_neg_eigval", None, FLAG),
        Layers(),
    ),
    build=decoder,
    describe=settings,
    defaults={"vocab": 100_352, "width": 3840, "hidden": 11008, "layers": 32, "heads": 30, "context": 65536}
    | {"kv_heads": rows.same_heads, "conv": 4, "negative": True},
    mixers=("gated_delta", "mha", "gqa", "mqa"),
    recut=recut,
    spellings=(
        (".input_layernorm.", ".attention_layer_norm."),
        (".post_attention_layernorm.", ".feedforward_layer_norm."),
    ),
    harmless=("linear_a_log_*", "linear_dt_*", "mlp_bias", "pretraining_tp"),
)
