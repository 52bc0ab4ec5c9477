"""Zamba 2 (2411.15242): Mamba 2 in every layer, and before it in some a transformer that these layers share.

The first of these layers stores the shared matrices, and the low-rank ones of all layers that use them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cutaway.errors import UserError
from cutaway.layers.config import Norm
from cutaway.model.block_config import Block, Shared
from cutaway.model.config import Decoder, Encoder
from cutaway.weights import decoders, naming, rotary, rows
from cutaway.weights.families import granitemoehybrid, llama
from cutaway.weights.family import FLAG, NUMBER, Entries, Family, Field, Only, Row, Settings
from cutaway.weights.fields import LAYERS, Fields
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import same

LINEAR, HYBRID = "linear_attention", "hybrid"
KINDS = {LINEAR: LINEAR, "mamba": LINEAR, HYBRID: HYBRID}
USUAL = (
    *(LINEAR,),
    *(*(LINEAR,) * 5, HYBRID) * 7,
    *(LINEAR,) * 4,
    HYBRID,
    *(LINEAR,) * 3,
    HYBRID,
    *(LINEAR,) * 2,
)
USES = 32  # of shared transformers, at most
LAYER, OURS = "model.layers.{n}", "blocks.{n}.shared"
INNER = 1e-5  # the epsilon of Mamba 2's norm, whatever the config says


class Layers(Row):
    """Which layers have a shared transformer, and how many of these there are."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        listed = fields.get("layers_block_type")
        listed = fields.get("layer_types") if listed is None else listed
        words = list(USUAL) if listed is None else listed
        if not isinstance(words, list) or not 0 < len(words) <= LAYERS:
            raise fields.refusal("layers_block_type", "should list the kinds of layers")
        if wrong := [word for word in words if not isinstance(word, str) or word not in KINDS]:
            raise fields.refusal("layers_block_type", f"has {wrong[0]!r}, not one of {', '.join(KINDS)}")
        fields.only("num_hidden_layers", (len(words), None), "another number of layers than are listed")
        hybrid = tuple(KINDS[word] == HYBRID for word in words)
        if not 0 < sum(hybrid) <= USES:
            raise fields.refusal("layers_block_type", f"should name 1 to {USES} layers {HYBRID}")
        blocks = fields.integer("num_mem_blocks") if fields.stated("num_mem_blocks") else 1
        return {"layers": len(words), "hybrid": hybrid, "shared_blocks": blocks}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {
            "layers_block_type": [HYBRID if hybrid else LINEAR for hybrid in known["hybrid"]],
            "num_hidden_layers": len(known["hybrid"]),
            "num_mem_blocks": known["shared_blocks"],
        }


class Sizes(Row):
    """Mamba 2's heads, and what the shared transformers' are made of."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        width, heads = known["width"], known["heads"]
        expand = fields.integer("mamba_expand") if fields.stated("mamba_expand") else 2
        mamba = fields.integer("n_mamba_heads") if fields.stated("n_mamba_heads") else 8
        inner = expand * width
        if inner % mamba or 2 * width % heads:
            raise fields.refusal(
                "n_mamba_heads",
                f"is {mamba}, and num_attention_heads {heads}: they must divide {inner} and {2 * width}",
            )
        hidden = fields.integer("intermediate_size", None) or 4 * width
        return {"mamba_heads": mamba, "mamba_size": inner // mamba, "hidden": hidden}

    def write(self, known: Settings, gguf: bool) -> Entries:
        inner, width = known["mamba_heads"] * known["mamba_size"], known["width"]
        if inner % width or known["head_size"] * known["heads"] != 2 * width:
            raise UserError("its mixers are not a whole number of times as wide as the model")
        return {
            "mamba_expand": inner // width,
            "n_mamba_heads": known["mamba_heads"],
            "intermediate_size": known["hidden"],
        }


class HeadSize(Row):
    """The size of a head, of vectors twice as wide as the model."""

    name = "head_size"

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        return {"head_size": 2 * known["width"] // known["heads"]}


class Rope(rotary.Rope):
    """Shared transformers may not rotate."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        turns = fields.flag("use_mem_rope") if fields.stated("use_mem_rope") else False
        found = super().read(fields, known, own)
        return found if turns else {"rope": None}

    def write(self, known: Settings, gguf: bool) -> Entries:
        entries = super().write(known, gguf) if known["rope"] else {}
        return {**entries, "use_mem_rope": known["rope"] is not None}


def sources(hybrid: Sequence[bool], count: int) -> list[int | None]:
    """The layer whose transformer each layer shares, itself where it is the first, None where it has none."""
    users = [n for n, each in enumerate(hybrid) if each]
    return [users[users.index(n) % count] if each else None for n, each in enumerate(hybrid)]


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    norm = Norm("rms", known["eps"])
    mamba = granitemoehybrid.mamba2(known | {"eps": INNER, "conv_bias": True}, least=known["least"])
    attention = decoders.heads(**decoders.shape(known), scale=(known["head_size"] / 2) ** -0.5)
    if known["adapted"] and known["kv_heads"] != known["heads"]:
        raise UserError("low-rank matrices of keys need as many key-value heads as heads")
    if known["mamba_bias"]:
        raise UserError("add_bias_linear is true: biases of a shared transformer are not supported")
    rank = known["rank"]
    own = Shared(
        attention, known["hidden"], known["activation"], norm, rank, rank if known["adapted"] else None
    )
    blocks = []
    for n, source in enumerate(sources(known["hybrid"], known["shared_blocks"])):
        shared = None if source is None else own if source == n else replace(own, source=source)
        blocks.append(Block(mamba, None, norm, shared=shared))
    return Decoder(known["vocab"], known["width"], known["context"], tuple(blocks), norm, known["tied"])


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config; UserError if none of its layers shares a transformer."""
    users: list[Any] = [block.shared for block in config.blocks if block.shared]
    if not users or not getattr(config, "tied", False):
        raise UserError("none of its layers shares a transformer, or its head is not the table")
    of, mamba = users[0].attention, config.blocks[0].attention
    known = decoders.settings(config) | granitemoehybrid.described(block.attention for block in config.blocks)
    return known | {
        "hybrid": tuple(block.shared is not None for block in config.blocks),
        "shared_blocks": sum(each.source is None for each in users),
        "heads": of.heads,
        "kv_heads": of.groups,
        "head_size": of.key_size,
        "rope": of.position,
        "hidden": users[0].hidden,
        "activation": users[0].activation,
        "rank": users[0].rank,
        "adapted": users[0].attention_rank is not None,
        "least": mamba.least,
    }


def has(block: Block) -> bool:
    """Whether a layer has a shared transformer."""
    return block.shared is not None


def owns(block: Block) -> bool:
    """Whether a shared transformer's matrices are in this layer."""
    return block.shared is not None and block.shared.source is None


def lenders(config: Any) -> list[int]:
    """For each layer, the layer whose shared transformer holds its low-rank matrices."""
    return [
        block.shared.source if block.shared and block.shared.source is not None else n
        for n, block in enumerate(config.blocks)
    ]


def adapters(use: int) -> tuple[Rule, ...]:
    """The low-rank matrices of the ``use``-th layer that has a shared transformer."""
    names = {"feed_forward.gate_up_proj": "gate_up"}
    names |= {f"self_attn.linear_{name[0]}": f"attention.{name}" for name in ("query", "key", "value")}
    return tuple(
        Rule(
            f"{LAYER}.shared_transformer.{theirs}_adapter_list.{use}.{i}.weight",
            f"{OURS}.{ours}.{part}.weight",
            same,
            number=_only(use),
        )
        for theirs, ours in names.items()
        for i, part in enumerate(("down", "up"))
    )


def _only(use: int) -> Callable[[Any], list[int | None]]:
    """Their number of the layer that is this use; none of the others."""

    def numbers(config: Any) -> list[int | None]:
        users = [n for n, block in enumerate(config.blocks) if block.shared]
        chosen = users[use] if use < len(users) else None
        return [number if n == chosen else None for n, number in enumerate(lenders(config))]

    return numbers


FAMILY = llama.FAMILY.but(
    "zamba2",
    "Zamba2ForCausalLM",
    hf=(
        *naming.weights(
            ("model.embed_tokens", "embedding"),
            ("model.final_layernorm", "norm"),
            ("lm_head", "head"),
        ),
        *(
            replace(rule, when=when)
            for inner, when in (("", lambda block: not has(block)), (".mamba_decoder", has))
            for rule in (
                *granitemoehybrid.hf_mamba(f"{LAYER}{inner}.mamba"),
                *naming.weights((f"{LAYER}{inner}.input_layernorm", "blocks.{n}.attention_norm")),
            )
        ),
        *(
            replace(rule, when=owns)
            for rule in naming.weights(
                (f"{LAYER}.shared_transformer.input_layernorm", f"{OURS}.attention_norm"),
                (f"{LAYER}.shared_transformer.pre_ff_layernorm", f"{OURS}.mlp_norm"),
                (f"{LAYER}.shared_transformer.self_attn.q_proj", f"{OURS}.attention.query.shared"),
                (f"{LAYER}.shared_transformer.self_attn.k_proj", f"{OURS}.attention.key.shared"),
                (f"{LAYER}.shared_transformer.self_attn.v_proj", f"{OURS}.attention.value.shared"),
                (f"{LAYER}.shared_transformer.self_attn.o_proj", f"{OURS}.attention.out.shared"),
                (f"{LAYER}.shared_transformer.feed_forward.gate_up_proj", f"{OURS}.gate_up.shared"),
                (f"{LAYER}.shared_transformer.feed_forward.down_proj", f"{OURS}.down.shared"),
            )
        ),
        *naming.weights((f"{LAYER}.linear", f"{OURS}.out")),
        *(rule for use in range(USES) for rule in adapters(use)),
    ),
    gguf=(),
    rows=(
        Layers(),
        *rows.replaced(rows.SIZES, rows.ACTIVATION_ROW, Rope(), HeadSize(), without=("layers",)),
        Sizes(),
        Field("state_size", "mamba_d_state", None),
        Field("mamba_groups", "mamba_ngroups", None),
        Field("conv", "mamba_d_conv", None),
        Field("mamba_bias", "add_bias_linear", None, FLAG),
        Field("least", "time_step_min", None, NUMBER),
        Field("rank", "adapter_rank", None),
        Field("adapted", "use_shared_attention_adapter", None, FLAG),
        Only(
            "tie_word_embeddings", None, (True,), "a head of its own, with which transformers shares nothing,"
        ),
        Only("use_long_context", None, (False,), "a context that rescales positions"),
    ),
    build=decoder,
    describe=settings,
    defaults={"vocab": 32_000, "width": 2560, "heads": 32, "kv_heads": rows.same_heads, "context": 4096}
    | {"eps": 1e-5, "activation": "gelu", "tied": True, "state_size": 64, "mamba_groups": 1, "conv": 4}
    | {"mamba_bias": False, "least": 0.001, "rank": 128, "adapted": False},
    mixers=("mamba2",),
    harmless=(
        *("use_mamba_kernels", "use_conv_bias", "chunk_size", "use_mem_eff_path", "num_logits_to_keep"),
        *("time_step_max", "time_step_floor", "attention_hidden_size", "mamba_headdim", "kv_channels"),
        *("num_query_groups", "hybrid_layer_ids", "attention_head_dim", "head_dim", "time_step_limit"),
    ),
)
