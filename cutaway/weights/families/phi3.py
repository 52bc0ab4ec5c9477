"""Phi-3 (2404.14219) and Phi-4-mini: llama's block with query, key and value in one matrix, and gate and up.

Long contexts have LongRoPE; Phi-4-mini rotates three quarters of a head.
"""

from dataclasses import fields, replace

from cutaway.attention.common.heads import Heads
from cutaway.errors import UserError
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.position.scaling import LongRoPE
from cutaway.weights import decoders, naming, rotary, rows
from cutaway.weights.families import llama
from cutaway.weights.family import Entries, Family, Field, Settings
from cutaway.weights.fields import Fields
from cutaway.weights.named_tensors import Tensors
from cutaway.weights.rules import Rule
from cutaway.weights.tensor_maps import split

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


class Window(Field):
    """The window of all layers, which llama.cpp leaves out; one over the whole context changes nothing."""

    def _from_gguf(self, fields: Fields, known: Settings, own: Family) -> Settings:
        window = fields.integer(str(self.gguf), 0, low=0)
        return {self.name: window if 0 < window < known["context"] else None}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if gguf and known["window"] is not None:
            raise UserError("a window is not supported in GGUF: llama.cpp leaves it out here")
        return {} if gguf else super().write(known, gguf)


def folded(config: Decoder, tensors: Tensors) -> tuple[Decoder, Tensors, str]:
    """The same without a window that is no smaller than the context."""

    def seen(block: Block) -> Block:
        of = block.attention
        if (decoders.window_of(of) or 0) < config.context:
            return block
        shared = {field.name: getattr(of, field.name) for field in fields(Heads)}
        return replace(block, attention=decoders.heads(shared.pop("heads"), of.groups, **shared))

    return (
        replace(config, blocks=tuple(map(seen, config.blocks))),
        tensors,
        "a window over the whole context is left out",
    )


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
        *rows.replaced(rows.SIZES, Rope(part=1.0)),
        *rows.DENSE,
        Window("window", "sliding_window", "attention.sliding_window"),
    ),
    defaults={"context": 4096, "eps": 1e-5, "window": None},
    nulls={"window": None},
    fixed={"bias": False, "out_bias": False},
    ignored_gguf=rotary.LONG_FACTORS,
    folded=folded,
)
