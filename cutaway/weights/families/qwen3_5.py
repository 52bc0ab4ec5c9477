"""Qwen 3.5 (2026), text: Qwen3-Next's mixers, whose projections are apart, and a dense MLP."""

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import TYPES, Packed
from cutaway.weights import mtp, naming, rotary, rows
from cutaway.weights.families import qwen3_next
from cutaway.weights.families.qwen3_next import HF_DELTA, HF_GATED, OURS, THEIRS, gguf_gated, of_linear, ours
from cutaway.weights.family import Entries, Family, Only, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rules import How, Place, Rule
from cutaway.weights.tensor_maps import chain, decay_vector, same, split

SECTIONS = "rope.dimension_sections"

ALIASES = ("qwen3_5_text", "qwen35")

HF = (
    *HF_GATED,
    *HF_DELTA,
    *of_linear(
        (
            Rule(f"{THEIRS}.in_proj_qkv.weight", ours("query", "key", "value"), split),
            *naming.weights(
                (f"{THEIRS}.in_proj_z", "blocks.{n}.attention.gate"),
                (f"{THEIRS}.in_proj_b", "blocks.{n}.attention.beta"),
                (f"{THEIRS}.in_proj_a", "blocks.{n}.attention.forget"),
            ),
        )
    ),
)


def _order(rows: int, place: Place) -> np.ndarray:
    """GGUF's order of rows for value heads: the first of each key head, then the second of each."""
    of = place.attention
    size = 1 if rows == of.heads else of.values
    first = rows - of.heads * size
    heads = np.arange(of.heads * size).reshape(of.groups, -1, size).swapaxes(0, 1).ravel()
    return np.concatenate([np.arange(first), first + heads])


def _columns(packed: Packed, place: Place, loading: bool) -> Packed:
    """The columns of value heads in the other order; blocks may not reach from one head into the next."""
    of, (rows, columns) = place.attention, packed.shape
    if of.heads == of.groups:
        return packed
    if of.values % TYPES[packed.type].block:
        raise UserError(
            f"columns of {packed.type} cannot be reordered, because heads of {of.values} share its blocks: "
            "take a type of blocks of 32"
        )
    heads = np.arange(of.heads).reshape(of.groups, -1).T.ravel()
    heads = np.argsort(heads) if loading else heads
    moved = packed.data.reshape(rows, of.heads, -1)[:, heads]
    return Packed(packed.type, (rows, columns), np.ascontiguousarray(moved).reshape(rows, -1))


# Value heads that share a key are apart in GGUF, where ours are side by side.
tiled = How(
    lambda packed, place: (packed.rows(np.argsort(_order(packed.shape[0], place))),),
    lambda parts, place: parts[0].rows(_order(parts[0].shape[0], place)),
    same.shape,
)
tiled_columns = How(
    lambda packed, place: (_columns(packed, place, True),),
    lambda parts, place: _columns(parts[0], place, False),
    same.shape,
)
GGUF = gguf_gated(
    Rule("blk.{n}.attn_qkv.weight", ours("query", "key", "value"), chain(tiled, split)),
    *(
        Rule(f"blk.{{n}}.{theirs}", f"{OURS}.{name}", tiled)
        for theirs, name in (
            ("attn_gate.weight", "gate.weight"),
            ("ssm_beta.weight", "beta.weight"),
            ("ssm_alpha.weight", "forget.weight"),
            ("ssm_conv1d.weight", "conv.weight"),
            ("ssm_dt.bias", "decay.dt_bias"),
        )
    ),
    Rule("blk.{n}.ssm_a", f"{OURS}.decay.A_log", chain(tiled, decay_vector)),
    Rule("blk.{n}.ssm_out.weight", f"{OURS}.out.weight", tiled_columns),
)


class Rope(rotary.Rope):
    """The three coordinates of an image's patch are equal in a text, so sections change nothing."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            fields.get(SECTIONS)
        return super().read(fields, known, own)

    def write(self, known: Settings, gguf: bool) -> Entries:
        entries = super().write(known, gguf)
        if not gguf:
            return entries
        pairs = entries["rope.dimension_count"] // 2  # which llama.cpp deals out in turn
        sections = [-(-(pairs - n) // 3) for n in range(3)]
        return entries | {SECTIONS: np.array([*sections, 0], np.int32)}

    def of(self, given: Fields | None, *rest):  # type: ignore[no-untyped-def]
        if given is not None:
            for key in ("mrope_section", "mrope_interleaved"):
                given.get(key)
        return super().of(given, *rest)


DELTA = (*qwen3_next.DELTA, Only("attn_output_gate", None, (True,), "attention without a gate"))
HEADS = (
    mtp.Heads("mtp_num_hidden_layers"),
    Only("mtp_use_dedicated_embeddings", None, (False, None), "heads with embeddings of their own"),
)
FAMILY = qwen3_next.FAMILY.but(
    "qwen3_5",
    "Qwen3_5ForCausalLM",
    hf_type="qwen3_5_text",
    hf=qwen3_next.with_heads(HF),
    gguf=mtp.in_gguf((*GGUF, *naming.weights(*naming.GGUF_MLP))),
    architecture="qwen35",
    rows=(
        *rows.replaced(rows.SIZES, Rope(part=0.25)),
        *rows.DENSE,
        *HEADS,
        *DELTA,
    ),
    defaults={"kv_heads": 4},
    sparse=False,
    harmless=("mamba_ssm_dtype",),
)
