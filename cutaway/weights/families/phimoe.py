"""Phi-3.5-MoE (2404.14219): llama's block with layer norms, and two experts chosen by SparseMixer.

Transformers 5 keeps the short divisors of LongRoPE in texts past the original length; the model's own code,
and Cutaway, take the long ones there.
"""

from dataclasses import replace
from typing import Any

from cutaway.position import rope
from cutaway.position.scaling import LongRoPE
from cutaway.weights import rotary, rows
from cutaway.weights.families import mixtral
from cutaway.weights.family import FLAG, Entries, Field, Kind, Settings
from cutaway.weights.fields import Fields

MSCALES = ("short_mscale", "long_mscale")


class Rope(rotary.Rope):
    """LongRoPE, whose factor of cosine and sine the config has twice."""

    def of(
        self, given: Fields | None, known: Settings, base: float, top: Fields | None = None
    ) -> rope.Config:
        first, second = (None if given is None else given.number(key, None) for key in MSCALES)
        found = super().of(given, known, base, top)
        if found.scaling is None or given is None:
            return found
        if not isinstance(found.scaling, LongRoPE):
            raise given.refusal("rope_type", "is not longrope: another scaling is not supported here")
        if first is None or first != second:
            raise given.refusal("long_mscale", "is not short_mscale: a factor by length is not supported")
        return replace(found, scaling=replace(found.scaling, attention=first))

    def write(self, known: Settings, gguf: bool) -> Entries:
        entries: dict[str, Any] = super().write(known, gguf)
        scaling = entries.get("rope_scaling")
        if scaling and "attention_factor" in scaling:
            scaling |= dict.fromkeys(MSCALES, scaling.pop("attention_factor"))
        return entries


JITTER = Kind(lambda fields, key: fields.number(key, low=-1e-30), float)

FAMILY = mixtral.FAMILY.but(
    "phimoe",
    "PhiMoEForCausalLM",
    modules=(*mixtral.FAMILY.modules, (".mlp.gate.", ".mlp.router.")),
    gguf=(),
    rows=(
        *rows.replaced(rows.SIZES, Rope()),
        *rows.experts("num_local_experts", ("intermediate_size", "feed_forward_length")),
        Field("window", "sliding_window", None),
        Field("jitter", "router_jitter_noise", None, JITTER),
        Field("head_bias", "lm_head_bias", None, FLAG),
        *rows.biases("attention_bias"),
    ),
    defaults={"experts": 16, "context": 131072, "jitter": 0.01, "head_bias": False, "bias": False}
    | {"out_bias": False},
    fixed={"norm": "layer", "score": "sparsemixer", "normalised": False},
    forget=("bias", "out_bias", "kv_heads"),
    harmless=("input_jitter_noise", "hidden_dropout"),
)
