"""Gemma 3, text (2503.19786): five local layers to one global, norms before and after each half.

Local and global layers have rotary bases of their own, embeddings are scaled by the root of the width, and a
folder's norms hold w where x is multiplied by w + 1.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cutaway.attention.common.heads import Heads
from cutaway.errors import UserError
from cutaway.position import rope
from cutaway.position.scaling import YaRN, sharpening
from cutaway.weights import naming, rotary, rows
from cutaway.weights.families import gemma, llama
from cutaway.weights.family import NUMBER, Entries, Family, Field, Kind, Only, Settings, shared
from cutaway.weights.fields import Fields
from cutaway.weights.named_tensors import Tensors, multiplied
from cutaway.weights.rows import FULL, SLIDING

ALIASES = ("gemma3_text",)

BASES = {SLIDING: 10_000.0, FULL: 1_000_000.0}


def gguf_scale(known: Settings) -> float | None:
    """The largest model, which llama.cpp recognises by its 62 layers, scales scores by width / heads."""
    return shared(known) ** -0.5 if known["layers"] == 62 else None


def folded(
    config: Any, tensors: Tensors, gguf_scale: Callable[[Settings], float | None] = gguf_scale
) -> tuple[Any, Tensors, str]:
    """The same function with its factor of attention scores in the queries' norms, or in their matrices where
    there are none (Gemma 2): GGUF has no key for it, and llama.cpp takes the one of ``gguf_scale``.
    """
    blocks, factors = [], {}
    for n, block in enumerate(config.blocks):
        of = block.attention
        if not isinstance(of, Heads):
            return config, tensors, ""
        known = {"layers": len(config.blocks), "width": config.width, "heads": of.heads}
        usual, theirs = of.key_size**-0.5, gguf_scale(known)
        for name in ("query_norm.weight",) if of.qk_norm else ("query.weight", "query.bias"):
            factors[f"blocks.{n}.attention.{name}"] = (of.scale or usual) / (theirs or usual)
        blocks.append(replace(block, attention=replace(of, scale=theirs)))
    if all(abs(factor - 1) <= 1e-6 for factor in factors.values()):
        return config, tensors, ""
    what = "queries are multiplied by the factor of attention scores, for which GGUF has no key"
    return replace(config, blocks=tuple(blocks)), multiplied(tensors, factors), what


class TwoRopes(rotary.Rope):
    """Rotary positions of global and of local layers; the older layout scales the global ones alone."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            base = fields.number("rope.freq_base_swa", BASES[SLIDING], 1.0)
            return {**super().read(fields, known, own), "local_rope": rope.Config(known["head_size"], base)}
        given, older = fields.section("rope_parameters"), fields.section("rope_scaling")
        found = {}
        names = {FULL: ("rope", "rope_theta"), SLIDING: ("local_rope", "rope_local_base_freq")}
        for kind, (name, key) in names.items():
            section = given.section(kind) if given else None
            if kind == FULL and older:
                if given and section is None:
                    raise fields.refusal("rope_scaling", f"is there, but rope_parameters has no {FULL}")
                section = _joined(section, older)
            base = fields.number(key, low=1.0) if fields.stated(key) else BASES[kind]
            found[name] = self.of_kind(section, known, base)
        if given:
            given.finish((), "Gemma 3's rotary positions have")
        return found

    def write(self, known: Settings, gguf: bool) -> Entries:
        near, far = known["local_rope"], known["rope"]
        if gguf and near and isinstance(far.scaling, YaRN):
            usual = sharpening(far.scaling.factor)
            if far.scaling.factor <= 1 or abs(far.scaling.magnitude - usual) > 1e-6:
                raise UserError("YaRN that scales the angles of global layers alone is not supported in GGUF")
        key = "rope.freq_base_swa" if gguf else "rope_local_base_freq"
        own = {key: float(near.base)} if near else {} if gguf else {key: BASES[SLIDING]}
        return super().write(known, gguf) | own


def _joined(section: Fields | None, older: Fields) -> Fields:
    """The entries of both layouts; the older one overrides, but a ``rope_type`` hides its ``type``."""
    stated = section or Fields({"rope_type": "default"}, older.where)
    inner = {key.removeprefix(stated.prefix): value for key, value in stated.data.items()}
    inner |= {key.removeprefix(older.prefix): value for key, value in older.data.items()}
    return Fields({older.prefix + name: value for name, value in inner.items()}, older.where, older.prefix)


SCALAR = Kind(Fields.number, lambda scalar: round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar)


class Scale(Field):
    """The factor of attention scores, 1 / sqrt(query_pre_attn_scalar)."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {}
        scalar = super().read(fields, known, own)["scale"]
        return {"scale": None if scalar == known["head_size"] else scalar**-0.5}

    def write(self, known: Settings, gguf: bool) -> Entries:
        scale = known["scale"]
        return super().write({"scale": known["head_size"] if scale is None else scale**-2}, gguf)


ACTIVATION = Field("activation", "hidden_activation", None, rows.ACTIVATION)
FAMILY = llama.FAMILY.but(
    "gemma3",
    "Gemma3ForCausalLM",
    hf_type="gemma3_text",
    hf=naming.one_more((*naming.HF_SANDWICH, *naming.HF_QK_NORM)),
    gguf=(
        *naming.GGUF_PLAIN,
        *naming.GGUF_QK_NORM,
        *naming.weights(
            ("blk.{n}.post_attention_norm", "blocks.{n}.attention_post_norm"),
            ("blk.{n}.post_ffw_norm", "blocks.{n}.mlp_post_norm"),
        ),
    ),
    rows=(
        *rows.replaced(rows.SIZES, ACTIVATION, without=("rope",)),
        *rows.DENSE,
        rows.LayerTypes(pattern=6),
        TwoRopes(),
        Scale("scale", "query_pre_attn_scalar", None, SCALAR),
        Field("softcap", "final_logit_softcapping", "final_logit_softcapping", NUMBER, missing=None),
        *rows.biases("attention_bias"),
        Only("use_bidirectional_attention", None, (False, None), "attention to later tokens"),
        # Transformers reads this key of Gemma 2's and then leaves it out of the equation.
        Only("attn_logit_softcapping", None, (None,), "a bound on scores, on which engines disagree,"),
    ),
    defaults={"vocab": 262_208, "width": 2304, "heads": 8, "kv_heads": 4, "head_size": 256}
    | {"context": 131_072, "activation": "gelu_tanh", "tied": True, "softcap": None, "scale": 256.0},
    nulls={"softcap": None},
    forget=("kv_heads", "head_size"),
    fixed={"qk_norm": True, "post_norm": True, "embedding_scale": gemma.embedding_scale},
    gguf_fixed={"activation": "gelu_tanh", "scale": gguf_scale},
    harmless=("_sliding_window_pattern",),
    instead=lambda fields: "embedding_gemma" if fields.get("use_bidirectional_attention") is True else None,
    ignored_gguf=(),
    folded=folded,
)
