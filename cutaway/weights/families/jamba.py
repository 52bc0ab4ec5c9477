"""Jamba (2403.19887): Mamba in most layers, attention without positions in some, experts in every other.

Mamba's steps, B and C are made of what is normed, with learned weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cutaway.errors import UserError
from cutaway.layers.config import Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.weights import decoders, naming, rows
from cutaway.weights.families import llama, mamba
from cutaway.weights.families.mamba import is_mamba
from cutaway.weights.family import FLAG, Entries, Family, Field, FolderRow, Only, Row, Settings
from cutaway.weights.fields import Fields


def attends(block: Block) -> bool:
    """Whether a layer's mixer is attention."""
    return not is_mamba(block)


def periodic(there: Sequence[bool]) -> tuple[int, int]:
    """The period and the offset of the layers that are marked; UserError if they are not evenly spaced."""
    layers = len(there)
    for period in range(1, layers + 2):
        for offset in range(period):
            if all((n % period == offset) == each for n, each in enumerate(there)):
                return period, offset
    raise UserError("its kinds of layers do not alternate by a period")


@dataclass(frozen=True)
class Periodic(FolderRow):
    """Which layers are of a kind: one in ``{key}_layer_period``; ``name`` marks the others."""

    name: str
    key: str
    usual: tuple[int, int]

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        found = []
        for word, usual, low in zip(("period", "offset"), self.usual, (1, 0), strict=True):
            key = f"{self.key}_layer_{word}"
            found.append(fields.integer(key, low=low) if fields.stated(key) else usual)
        period, offset = found
        if offset >= period:
            raise fields.refusal(f"{self.key}_layer_offset", f"is {offset}; it must be below {period}")
        return {self.name: tuple(n % period != offset for n in range(known["layers"]))}

    def write(self, known: Settings, gguf: bool) -> Entries:
        period, offset = periodic([not other for other in known[self.name]])
        return {f"{self.key}_layer_period": period, f"{self.key}_layer_offset": offset}


class KeyValueHeads(rows.HybridKeyValueHeads):
    """No heads where a layer is Mamba."""

    others = "mamba"


class Experts(Row):
    """How many experts there are, in the layers that are not dense; 1 is a dense model."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        key = "expert_count" if fields.gguf else "num_experts"
        keys = (key,) if fields.gguf else (key, "num_local_experts")
        stated = [fields.integer(each, low=0) for each in keys if fields.has(each)]
        if len(set(stated)) > 1:
            raise fields.refusal(keys[0], f"and {keys[-1]} disagree: {stated[0]} and {stated[1]}")
        experts = stated[0] if stated else 0 if fields.gguf else 16
        key = "expert_used_count" if fields.gguf else "num_experts_per_tok"
        top_k = fields.integer(key, None, low=0) if fields.gguf or fields.stated(key) else 2
        dense = known.get("dense")
        if fields.gguf:
            layers = range(known["layers"])
            dense = tuple(f"blk.{n}.ffn_gate_inp.weight" not in fields.tensors for n in layers)
        if experts < 2 or dense is None or all(dense):
            return {"dense": (True,) * known["layers"]}
        return {"experts": experts, "top_k": top_k, "expert_hidden": known["hidden"], "dense": dense}

    def write(self, known: Settings, gguf: bool) -> Entries:
        counts = (known["experts"], known["top_k"]) if "experts" in known else (0, 0)
        if not gguf:
            return {"num_experts": max(counts[0], 1), "num_experts_per_tok": max(counts[1], 1)}
        return dict(zip(("expert_count", "expert_used_count"), counts, strict=True)) if any(counts) else {}


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    mixer = mamba.mamba(known | {"inner_norm": Norm("rms", known["eps"])})
    attention = decoders.heads(known["heads"], known["kv_heads"], key_size=known["head_size"])
    return decoders.decoder(
        known | {"rope": None, "mixers": tuple(mixer if one else attention for one in known["mamba"])}
    )


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config; UserError if none of its layers is Mamba, or none attends."""
    known = decoders.settings(config) | {"mamba": tuple(map(is_mamba, config.blocks))}
    if len(set(known["mamba"])) < 2:
        raise UserError("its layers are of one kind")
    return known | mamba.described(block.attention for block in config.blocks if is_mamba(block))


FAMILY = llama.FAMILY.but(
    "jamba",
    "JambaForCausalLM",
    bypassed=("dt_proj",),
    hf=(
        *naming.of_layers(naming.HF_PRE_FF, attends, naming.MIXER),
        *naming.renamed(naming.HF_EXPERTS, (".mlp.gate.", ".mlp.router."), (".mlp.", ".feed_forward.")),
        *mamba.hf_mamba("model.layers.{n}.mamba", is_mamba),
    ),
    gguf=(
        *naming.GGUF_EMBEDDINGS,
        *naming.GGUF_NORMS,
        *naming.of_layers(naming.GGUF_ATTENTION, attends),
        *naming.weights(*naming.GGUF_MLP),
        *naming.GGUF_EXPERTS,
        *mamba.gguf_mamba(is_mamba),
    ),
    architecture="jamba",
    rows=(
        *rows.replaced(
            rows.SIZES,
            KeyValueHeads("kv_heads", "num_key_value_heads", "attention.head_count_kv"),
            without=("activation", "rope"),
        ),
        Only("hidden_act", None, ("silu",), "another activation"),
        Field("hidden", "intermediate_size", "feed_forward_length", each_layer=True),
        Periodic("mamba", "attn", (8, 4)),
        Periodic("dense", "expert", (2, 1)),
        Experts(),
        Field("state_size", "mamba_d_state", None),
        Field("conv", "mamba_d_conv", None),
        Field("mamba_bias", "mamba_proj_bias", None, FLAG),
        Field("conv_bias", "mamba_conv_bias", None, FLAG),
        mamba.Sizes("mamba_expand", "mamba_dt_rank"),
        Only(None, "expert_gating_func", (1,), "another score of experts than softmax"),
        Only("sliding_window", None, (None,), "a sliding window"),
    ),
    build=decoder,
    describe=settings,
    defaults={"vocab": 65536, "width": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "context": 262144}
    | {"hidden": 14336, "tied": False, "state_size": 16, "conv": 4, "mamba_bias": False, "conv_bias": True},
    fixed={"normalised": False, "activation": "silu", "scale": None, "bias": False, "out_bias": False},
    sparse=None,
    mixers=("mamba", "mha", "gqa", "mqa"),
    harmless=(
        *("use_mamba_kernels", "use_mambapy", "use_associative_scan", "mamba_inner_layernorms"),
        *("num_logits_to_keep", "calc_logits_for_entire_prompt", "n_ctx", "attn_implementation"),
    ),
    ignored_gguf=(),
)
