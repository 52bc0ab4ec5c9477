"""Phi-3 (2404.14219) and Phi-4-mini: llama's block with query, key and value in one matrix, and gate and up.

Long contexts have LongRoPE; Phi-4-mini rotates three quarters of a head.
"""

from cutaway.position.scaling import LongRoPE
from cutaway.weights import naming, rotary, rows
from cutaway.weights.families import llama
from cutaway.weights.family import Entries, Family, Field, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.rules import Rule, split

QUERY_KEY_VALUE = tuple(f"blocks.{{n}}.attention.{name}.weight" for name in ("query", "key", "value"))
ORIGINAL = 4096  # transformers' own where the config does not say


class Rope(rotary.Rope):
    """``su`` and ``yarn`` are older words for LongRoPE; the length of the pretraining is beside it."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        for name in ("rope_scaling", "rope_parameters"):
            section = fields.get(name)
            if isinstance(section, dict) and section.get("rope_type", section.get("type")) in ("su", "yarn"):
                word = {"rope_type": "longrope"}
                fields.data = {**fields.data, name: {**section, **word}}  # type: ignore[dict-item]
        if not fields.gguf and not fields.has(rotary.ORIGINAL):
            fields.data = {**fields.data, rotary.ORIGINAL: ORIGINAL}
        found = super().read(fields, known, own)
        if not isinstance(found["rope"].scaling, LongRoPE | None):
            raise fields.refusal("rope_parameters", "scale otherwise than LongRoPE, which Phi-3 does not")
        return found

    def write(self, known: Settings, gguf: bool) -> Entries:
        entries = super().write(known, gguf)
        scaling = entries.get("rope_scaling") or {}
        return entries | ({rotary.ORIGINAL: scaling[rotary.ORIGINAL]} if rotary.ORIGINAL in scaling else {})


FAMILY = llama.FAMILY.but(
    "phi3",
    "Phi3ForCausalLM",
    hf=(
        *naming.renamed(naming.HF_GATE_UP, without=("q_proj", "k_proj", "v_proj")),
        Rule("model.layers.{n}.self_attn.qkv_proj.weight", QUERY_KEY_VALUE, split),
    ),
    gguf=(
        *naming.renamed(naming.GGUF_GATE_UP, without=("attn_q", "attn_k", "attn_v")),
        Rule("blk.{n}.attn_qkv.weight", QUERY_KEY_VALUE, split),
    ),
    rows=(
        *(Rope(part=1.0) if isinstance(row, rotary.Rope) else row for row in rows.SIZES),
        *rows.DENSE,
        Field("window", "sliding_window", None),
    ),
    defaults={"context": 4096, "eps": 1e-5, "window": None},
    nulls={"window": None},
    fixed={"bias": False, "out_bias": False},
    ignored_gguf=rotary.LONG_FACTORS,
)
