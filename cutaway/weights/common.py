"""What families of decoders share: rows of settings, weight names, and a config from settings and back.

``config.json`` is read in the layout of transformers 5 (``rope_parameters``) and in the older one
(``rope_theta``, ``rope_scaling``), and written in the older one, which both read. GGUF keys are llama.cpp's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from cutaway.attention import gqa, local, mha, mqa
from cutaway.attention.common.heads import Heads
from cutaway.errors import UserError
from cutaway.gguf import Packed, made
from cutaway.layers.config import MLP, MoE, Norm, Router
from cutaway.model.config import Block, Decoder, Encoder, Model
from cutaway.position import rope
from cutaway.position.scaling import (
    DynamicNTK,
    Factors,
    Linear,
    Llama3,
    LongRoPE,
    Proportional,
    YaRN,
    sharpening,
)
from cutaway.weights import quant
from cutaway.weights.family import (
    FLAG,
    LAYER_COUNT,
    NUMBER,
    Entries,
    Family,
    Field,
    Kind,
    Only,
    Present,
    Row,
    Settings,
    shared,
    words,
)
from cutaway.weights.fields import EXPERTS, Fields
from cutaway.weights.rules import Rule, plus_one, row, same, split, stack

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh"}
ACTIVATIONS |= {"gelu_pytorch_tanh": "gelu_tanh", "relu": "relu", "relu2": "relu2"}
ACTIVATIONS |= {"quick_gelu": "gelu_sigmoid", "gelu_fast": "gelu_tanh"}
HF_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}
HF_ACTIVATIONS |= {"relu2": "relu2", "gelu_sigmoid": "quick_gelu"}
OF_HEADS = (
    "scale",
    "bias",
    "out_bias",
    "qk_norm_over",
    "qk_norm_after",
    "temperature",
    "clip",
    "sinks",
    "relative",
    "value_norm",
)
OF_BLOCK = ("pre_norm", "post_norm", "parallel", "residual")
OF_DECODER = ("tied", "embedding_scale", "position", "softcap", "logit_scale", "embedding_norm", "head_bias")
OF_ROUTER = {name: name for name in ("score", "choice_bias", "groups", "top_groups", "group_of_two")}
OF_ROUTER |= {"bias": "router_bias", "scale": "routed_scale"}
ROPE_FREQS = "rope_freqs.weight"
LONG, SHORT = LONG_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
STILL = 1e30  # llama.cpp's divisor of a pair that does not rotate
FULL, SLIDING = "full_attention", "sliding_attention"
LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
}  # config.json's keys, ours
ORIGINAL = "original_max_position_embeddings"
LLAMA3 |= {ORIGINAL: "original"}


# ---- a config from settings, and settings from a config ----------------------------------------------------


def heads(count: int, kv_heads: int, window: int | None = None, **rest: Any) -> Heads:
    """The mechanism of these numbers: local with a window, else mha, mqa or gqa."""
    if window is not None:
        return local.Config(heads=count, kv_heads=kv_heads, window=window, **rest)
    if kv_heads == count:
        return mha.Config(heads=count, **rest)
    if kv_heads == 1:
        return mqa.Config(heads=count, **rest)
    return gqa.Config(heads=count, kv_heads=kv_heads, **rest)


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    norm = Norm(known["norm"], known["eps"], known.get("norm_weight", True), known.get("norm_bias", True))
    layers = known["layers"]
    each = zip(
        known.get("windows") or (known.get("window"),) * layers,
        known.get("nope") or (False,) * layers,
        known.get("dense") or ("experts" not in known,) * layers,
        strict=True,
    )

    def attention(window: int | None, nope: bool) -> Heads:
        position = known["rope"] if window is None else known.get("local_rope") or known["rope"]
        own = known.get("qk_norm")
        return heads(
            known["heads"],
            known["kv_heads"],
            window,
            key_size=known["head_size"],
            position=None if nope else position,
            qk_norm=norm if own is True else own or None,
            softcap=known.get("attention_softcap"),
            **{name: known[name] for name in OF_HEADS if name in known},
        )

    def block(window: int | None, nope: bool, dense: bool) -> Block:
        mlp = _dense(known) if dense else _sparse(known)
        own = {name: known[name] for name in OF_BLOCK if name in known}
        return Block(attention(window, nope), mlp, norm, **own)

    kinds = list(each)
    mixers = known.get("mixers") or (None,) * layers
    made = {kind: block(*kind) for kind in set(kinds)}
    return Decoder(
        vocab=known["vocab"],
        width=known["width"],
        context=known["context"],
        blocks=tuple(
            made[kind] if own is None else replace(made[kind], attention=own)
            for kind, own in zip(kinds, mixers, strict=True)
        ),
        norm=norm,
        **{name: known[name] for name in OF_DECODER if name in known},
    )


def _dense(known: Settings) -> MLP:
    return MLP(known["hidden"], known["activation"], known.get("gated", True), known.get("mlp_bias", False))


def _sparse(known: Settings) -> MoE:
    return MoE(
        known["experts"],
        known["top_k"],
        known["expert_hidden"],
        known["activation"],
        known.get("gated", True),
        shared=known.get("shared") or 0,
        bias=known.get("expert_bias", False),
        router=Router(**{name: known[key] for name, key in OF_ROUTER.items() if key in known}),
        **{name: known[name] for name in ("normalised", "shared_gate", "limit") if name in known},
    )


def window_of(attention: Any) -> int | None:
    """The window of a local layer."""
    return attention.window if isinstance(attention, local.Config) else None


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config; ``save`` refuses one that they cannot express: it reads back as another."""
    windows = tuple(window_of(block.attention) for block in config.blocks)
    first = next((block.attention for block in config.blocks if isinstance(block.attention, Heads)), None)
    full = next((b.attention for b, w in zip(config.blocks, windows, strict=True) if w is None), first)
    near = next((b.attention for b, w in zip(config.blocks, windows, strict=True) if w is not None), None)
    nope = tuple(block.attention.position is None for block in config.blocks)
    rotary = next((b.attention.position for b in config.blocks if b.attention.position is not None), None)
    dense = next((block.mlp for block in config.blocks if isinstance(block.mlp, MLP)), None)
    sparse = next((block.mlp for block in config.blocks if isinstance(block.mlp, MoE)), None)
    known: Settings = {
        "layers": len(config.blocks),
        "causal": isinstance(config, Decoder),
        "vocab": config.vocab,
        "width": config.width,
        "context": config.context,
        "eps": config.blocks[0].norm.eps,
        "rope": full.position or rotary if full else rotary,
        "local_rope": near.position if near else None,
        "window": windows[0],
        "windows": windows,
        "nope": nope,
        "dense": tuple(isinstance(block.mlp, MLP) for block in config.blocks),
        "mlp_bias": dense.bias if dense else False,
    }
    if (mlp := dense or sparse) is not None:
        known |= {"hidden": mlp.hidden, "activation": mlp.activation, "gated": mlp.gated}
    if first is not None:
        known |= {"heads": first.heads, "kv_heads": first.groups, "head_size": first.key_size}
        known |= {"qk_norm": first.qk_norm is not None, "attention_softcap": first.softcap}
        known["multi_query"] = first.groups == 1
        known |= {name: getattr(first, name) for name in OF_HEADS}
    known |= {name: getattr(config.blocks[0], name) for name in OF_BLOCK}
    known["side_by_side"] = known["parallel"] is not None
    if sparse is not None:
        known |= {"experts": sparse.experts, "top_k": sparse.top_k, "expert_hidden": sparse.hidden}
        known |= {name: getattr(sparse, name) for name in ("normalised", "shared", "limit")}
        known |= {"expert_bias": sparse.bias}
        known |= {key: getattr(sparse.router, name) for name, key in OF_ROUTER.items()}
    if isinstance(config, Encoder):
        return known | {"segments": config.segments, "offset": config.offset}
    return known | {name: getattr(config, name) for name in OF_DECODER}


# ---- rows of settings --------------------------------------------------------------------------------------


class Vocab(Field):
    """The size of the vocabulary; in GGUF the rows of the embedding table, since older files have no key."""

    def _from_gguf(self, fields: Fields, known: Settings, own: Family) -> Settings:
        size = rows_of(fields, "token_embd.weight")
        meaning = f"a vocabulary of another size than the {size} rows of token_embd.weight"
        fields.only("vocab_size", (size,), meaning)
        return {"vocab": size}


def rows_of(fields: Fields, name: str) -> int:
    """The number of rows of a tensor that must be in the file."""
    table = fields.tensors.get(name)
    if table is None or not table.shape:
        raise UserError(f"{fields.where}: the weight {name!r} is missing")
    return table.shape[0]


class HeadSize(Field):
    """The size of a head, which GGUF states twice."""

    def _from_gguf(self, fields: Fields, known: Settings, own: Family) -> Settings:
        found = super()._from_gguf(fields, known, own)
        size = found["head_size"]
        fields.only("attention.value_length", (size,), "values of another size than keys")
        return found

    def write(self, known: Settings, gguf: bool) -> Entries:
        keys = (self.gguf, "attention.value_length") if gguf else (self.hf,)
        return {key: known["head_size"] for key in keys if key}


def _even(fields: Fields, key: str) -> int:
    size = fields.integer(key)
    if size % 2:
        raise fields.refusal(key, f"is {size}: rotary position embedding needs pairs, so it must be even")
    return size


@dataclass(frozen=True)
class Rope(Row):
    """Rotary position embedding. ``defaults`` hold its ``rope_base``.

    ``part`` of a head rotates where the config does not say; None: all of it, and a part is refused.
    """

    part: float | None = None
    interleaved: bool = False
    required: bool = False  # refuses a config that says nothing, for which transformers has a scaling

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        size, base = known["head_size"], own.defaults["rope_base"]
        if fields.gguf:
            rope_dim = fields.integer("rope.dimension_count", size)
            if self.part is None:
                fields.only("rope.dimension_count", (size,), "partial rotary position embedding")
            return {"rope": replace(_gguf_rope(fields, rope_dim), interleaved=self.interleaved)}
        older, newer = fields.section("rope_scaling"), fields.section("rope_parameters")
        given = older if older and older.data else newer  # transformers too reads the older layout first
        if fields.has("rope_theta") and not (given and given.has("rope_theta")):
            base = fields.number("rope_theta", low=1.0) if fields.stated("rope_theta") else base
        fields.get("rope_theta")
        return {"rope": self.of(given, known, base, fields)}

    def of(
        self, given: Fields | None, known: Settings, base: float, top: Fields | None = None
    ) -> rope.Config:
        """The positions of a section of config.json, with this ``base`` unless it has its own; ``top``: the
        keys beside it, where a length of the pretraining and the part that rotates may be.
        """
        found = _part(given, top, self.part)
        size = int(known["head_size"] * found)
        if top:
            top.get(ORIGINAL)  # which only some scalings have
        if given is None and self.required and top:
            raise top.refusal("rope_parameters", "is missing: say how positions are scaled")
        if given is None:
            return rope.Config(size, base, interleaved=self.interleaved)
        if given.stated("rope_theta"):
            base = given.number("rope_theta", low=1.0)
        given.get("type")
        key = "rope_type" if given.has("rope_type") else "type"
        read = given.choice(key, SCALINGS, "default")
        length = top if top and top.stated(ORIGINAL) else given
        original = length.integer(ORIGINAL) if length.stated(ORIGINAL) else known["context"]
        scaling = read and read(given, original, known)
        given.finish((ORIGINAL,), "these rotary positions have")
        if isinstance(scaling, Proportional):
            size, scaling = known["head_size"], replace(scaling, fraction=found)
        return rope.Config(size, base, scaling, self.interleaved)

    def write(self, known: Settings, gguf: bool) -> Entries:
        position = known["rope"] or rope.Config(2)
        if not gguf:
            part = {} if self.part is None else {"partial_rotary_factor": part_of(position, known)}
            plain = {"rope_type": "default"} if self.required else None
            return {"rope_theta": position.base, "rope_scaling": hf_scaling(position) or plain, **part}
        entries: Entries = {"rope.freq_base": float(position.base), "rope.dimension_count": position.size}
        match position.scaling:
            case Llama3(original=original):
                entries["rope.scaling.original_context_length"] = original
            case Linear(factor):
                entries |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(factor)}
            case YaRN(factor, original, fast, slow, attention):
                entries |= {"rope.scaling.type": "yarn", "rope.scaling.factor": float(factor)}
                entries["rope.scaling.original_context_length"] = original
                own = {"beta_fast": (fast, 32.0), "beta_slow": (slow, 1.0)}
                own["attn_factor"] = (1.0 if attention is None else attention / sharpening(factor), 1.0)
                entries |= {f"rope.scaling.yarn_{key}": a for key, (a, usual) in own.items() if a != usual}
            case LongRoPE(original=original) as scaling:
                entries["rope.scaling.original_context_length"] = original
                entries["rope.scaling.attn_factor"] = scaling.magnitude
        return entries


def _part(given: Fields | None, top: Fields | None, usual: float | None) -> float:
    """The part of a head that rotates: the section's, else that beside it."""
    key = "partial_rotary_factor"
    for fields in (given, top):
        if fields is None or not fields.has(key):
            continue
        if usual is None:
            fields.only(key, (None, 1.0), "partial rotary position embedding")
        elif fields.get(key) is not None:
            if top:
                top.get(key)
            return fields.number(key, high=1.0)
    return 1.0 if usual is None else usual


def part_of(position: rope.Config, known: Settings) -> float:
    """The part of a head that rotates, as a config says it."""
    if isinstance(position.scaling, Proportional):
        return position.scaling.fraction
    part = position.size / known["head_size"]
    return (
        part
        if int(known["head_size"] * part) == position.size
        else (position.size + 0.5) / known["head_size"]
    )


def _llama3(given: Fields, original: int, known: Settings) -> Llama3:
    return Llama3(**{LLAMA3[key]: given.number(key) for key in list(LLAMA3)[:3]}, original=original)


def _yarn(given: Fields, original: int, known: Settings) -> YaRN:
    null = given.has("factor") and given.get("factor") is None
    factor = known["context"] / original if null else given.number("factor")
    attention, fast, slow = (
        given.number(key, None) for key in ("attention_factor", "beta_fast", "beta_slow")
    )
    mscales = given.number("mscale", None, -1.0), given.number("mscale_all_dim", None, -1.0)
    if attention is None and all(mscales):
        attention = sharpening(factor, mscales[0]) / sharpening(factor, mscales[1])
    given.get("finetuned")
    whole = given.flag("truncate") if given.stated("truncate") else True
    return YaRN(factor, original, fast or 32.0, slow or 1.0, attention, whole)


def _longrope(given: Fields, original: int, known: Settings) -> LongRoPE:
    short, long = (given.numbers(key) for key in ("short_factor", "long_factor"))
    factor = given.number("factor", None) or known["context"] / original
    return LongRoPE(short, long, original, factor, given.number("attention_factor", None))


SCALINGS = {
    "default": None,
    "linear": lambda given, *_: Linear(given.number("factor")),
    "dynamic": lambda given, _, known: DynamicNTK(given.number("factor"), known["context"]),
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "proportional": lambda given, *_: Proportional(1.0, given.number("factor", 1.0)),
}


def hf_section(position: rope.Config) -> Entries:
    """An entry of ``rope_parameters``."""
    return {"rope_type": "default", "rope_theta": position.base} | (hf_scaling(position) or {})


def hf_scaling(position: rope.Config) -> Entries | None:
    """The ``rope_scaling`` entry of these positions."""
    match position.scaling:
        case Linear(factor):
            return {"rope_type": "linear", "factor": factor}
        case DynamicNTK(factor):
            return {"rope_type": "dynamic", "factor": factor}
        case Proportional(factor=factor):
            return {"rope_type": "proportional"} | ({"factor": factor} if factor != 1.0 else {})
        case Llama3() as scaling:
            return {"rope_type": "llama3"} | {key: getattr(scaling, name) for key, name in LLAMA3.items()}
        case YaRN(factor, original, fast, slow, attention, whole):
            own = {} if attention is None else {"attention_factor": attention}
            own |= {} if whole else {"truncate": False}
            own |= {"factor": factor, ORIGINAL: original, "beta_fast": fast, "beta_slow": slow}
            return {"rope_type": "yarn", **own}
        case LongRoPE(short, long, original, factor, attention):
            own = {} if attention is None else {"attention_factor": attention}
            own |= {"short_factor": list(short), "long_factor": list(long), "factor": factor}
            return {"rope_type": "longrope", ORIGINAL: original, **own}
    return None


def _gguf_rope(fields: Fields, size: int) -> rope.Config:
    """Rotary positions from the metadata, and from the divisors that the file may carry as a tensor."""
    kind = fields.choice("rope.scaling.type", {"none": None, "linear": Linear, "yarn": YaRN}, "linear")
    factors = [
        fields.number(key, 1.0) for key in ("rope.scaling.factor", "rope.scale_linear") if fields.has(key)
    ]
    fields.get("rope.scale_linear")
    scaling = Linear(factors[0]) if kind is Linear and factors and factors[0] != 1.0 else None
    if kind is YaRN:
        factor = fields.number("rope.scaling.factor")
        fast, slow = (fields.number(f"rope.scaling.yarn_beta_{key}", None) for key in ("fast", "slow"))
        more = fields.number("rope.scaling.yarn_attn_factor", None)
        attention = None if more is None else more * sharpening(factor)
        original = fields.integer("rope.scaling.original_context_length")
        scaling = YaRN(factor, original, fast or 32.0, slow or 1.0, attention)
    base = fields.number("rope.freq_base", 10000.0, 1.0)
    if LONG in fields.tensors or SHORT in fields.tensors:
        return rope.Config(size, base, _gguf_longrope(fields, size))
    fields.only("rope.scaling.attn_factor", (1.0,), "scaling attention with the rotary frequencies")
    original = fields.integer("rope.scaling.original_context_length", 8192)
    divisors = fields.tensors.get(ROPE_FREQS)
    if divisors is None:
        return rope.Config(size, base, scaling)
    if scaling is not None:
        raise fields.refusal("rope.scaling.factor", f"and the weight {ROPE_FREQS!r} both scale positions")
    if divisors.type != "F32" or divisors.shape != (size // 2,):
        found = f"{divisors.type} {divisors.shape}"
        raise fields.refusal(
            "rope.dimension_count", f"asks for {size // 2} divisors as F32, but {ROPE_FREQS!r} is {found}"
        )
    plain = rope.Config(size, base)
    return rope.Config(size, base, recognised(plain, quant.unpack(made(ROPE_FREQS, divisors)), original))


def _gguf_longrope(fields: Fields, size: int) -> LongRoPE:
    """LongRoPE's divisors, two tensors; llama.cpp reads the long ones in a context above the original."""
    context = fields.integer("context_length")
    original = fields.integer("rope.scaling.original_context_length", context)
    found = {}
    for name in LONG_FACTORS:
        divisors = fields.tensors.get(name)
        if divisors is None:
            raise UserError(f"{fields.where}: the weight {name!r} is missing")
        if divisors.type != "F32" or divisors.shape != (size // 2,):
            raise fields.refusal(
                "rope.dimension_count",
                f"asks for {size // 2} divisors as F32, but {name!r} is {divisors.type} {divisors.shape}",
            )
        numbers = quant.unpack(made(name, divisors))
        if not (np.isfinite(numbers) & (numbers > 0)).all():
            raise UserError(f"{fields.where}: {name!r} holds divisors that are not positive numbers")
        found[name] = tuple(float(str(number)) for number in numbers)
    scaling = LongRoPE(found[SHORT], found[LONG], original, context / original)
    attention = fields.number("rope.scaling.attn_factor", 1.0)
    if abs(scaling.magnitude - attention) > 1e-6 * attention:
        scaling = replace(scaling, attention=attention)
    return scaling


def recognised(position: rope.Config, divisors: np.ndarray, original: int) -> Llama3 | Factors:
    """Llama 3's scaling, if its models' constants make these divisors; else the divisors themselves."""
    if not (np.isfinite(divisors) & (divisors > 0)).all():
        raise UserError(f"the weight {ROPE_FREQS!r} holds divisors that are not positive numbers")
    likely = Llama3(factor=float(str(divisors.max())), low=1.0, high=4.0, original=original)
    if likely.factor > 1 and np.allclose(divisors_of(position, likely), divisors, rtol=2e-6, atol=0):
        return likely
    return Factors(tuple(divisors.astype(np.float64).tolist()))


def divisors_of(position: rope.Config, scaling: Llama3 | Factors | Proportional) -> np.ndarray:
    """float32 [size / 2]: what a scaling divides the frequency of each pair by; STILL where none rotates."""
    plain = rope.Config(position.size, position.base).frequencies()
    stretched = scaling.stretch(plain)
    still = stretched == 0
    return np.where(still, STILL, plain / np.where(still, 1, stretched)).astype(np.float32)


def gguf_extras(config: Model) -> dict[str, Packed]:
    """The tensors of divisors, for scalings that GGUF has no keys for."""
    for position in (block.attention.position for block in config.blocks):
        if position is not None and isinstance(position.scaling, Llama3 | Factors | Proportional):
            return {ROPE_FREQS: quant.pack(divisors_of(position, position.scaling), "F32")}
        if position is not None and isinstance(position.scaling, LongRoPE):
            both = zip(LONG_FACTORS, (position.scaling.long, position.scaling.short), strict=True)
            return {name: quant.pack(np.array(divisors, np.float32), "F32") for name, divisors in both}
    return {}


class UpperWindows(Row):
    """Sliding windows in the upper layers, or in those that ``layer_types`` lists (Qwen 2 and 3)."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {}
        layers, window = known["layers"], None
        if fields.flag("use_sliding_window") if fields.stated("use_sliding_window") else False:
            window = fields.integer("sliding_window", None if fields.has("sliding_window") else 4096)
        fields.get("sliding_window")
        first = fields.integer("max_window_layers", low=0) if fields.stated("max_window_layers") else 28
        kinds = fields.each_layer("layer_types", layers, (SLIDING, FULL))
        is_local = (
            [n >= first for n in range(layers)] if kinds is None else [kind == SLIDING for kind in kinds]
        )
        if kinds and any(is_local) and window is None:
            raise fields.refusal("layer_types", "names sliding layers, but use_sliding_window is not true")
        return {"windows": tuple(window if each else None for each in is_local)}

    def write(self, known: Settings, gguf: bool) -> Entries:
        windows = known["windows"]
        if gguf:
            return {}
        near = next((window for window in windows if window is not None), None)
        if near is None:
            return {"use_sliding_window": False}
        return {
            "use_sliding_window": True,
            "sliding_window": near,
            "max_window_layers": windows.index(near),
            "layer_types": [FULL if window is None else SLIDING for window in windows],
        }


class NoWindows(UpperWindows):
    """The keys of ``UpperWindows`` where only full attention is supported (Qwen's mixtures of experts)."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {}
        fields.only("use_sliding_window", (False,), "a sliding window in a mixture of experts")
        fields.each_layer("layer_types", known["layers"], (FULL,))
        for key in ("sliding_window", "max_window_layers"):
            fields.get(key)
        return {}


@dataclass(frozen=True)
class FirstDense(Row):
    """How many of the first layers are dense (DeepSeek)."""

    key: str = "first_k_dense_replace"
    usual: int = 1

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        key, usual = ("leading_dense_block_count", 0) if fields.gguf else (self.key, self.usual)
        first = fields.integer(key, usual, low=0)
        return {"dense": tuple(n < first for n in range(known["layers"]))}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"leading_dense_block_count" if gguf else self.key: sum(known["dense"])}


class SharedExperts(Row):
    """Experts that all tokens pass, which are one MLP of their joint width."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        key, usual = (
            ("expert_shared_count", 0) if fields.gguf else ("n_shared_experts", own.defaults["shared"])
        )
        count = fields.integer(key, low=0) if fields.stated(key) else usual
        return {"shared": count * known["expert_hidden"]}

    def write(self, known: Settings, gguf: bool) -> Entries:
        count = known["shared"] // known["expert_hidden"]
        return {"expert_shared_count" if gguf else "n_shared_experts": count}


class SigmoidScores(Row):
    """GGUF's number for experts that are scored by a sigmoid."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            fields.only("expert_gating_func", (2,), "another score of experts than a sigmoid")
        return {}

    def write(self, known: Settings, gguf: bool) -> Entries:
        return {"expert_gating_func": 2} if gguf else {}


class HybridKeyValueHeads(Field):
    """GGUF lists the key-value heads of each layer: none where it does not attend, as ``others`` says."""

    others: ClassVar[str]

    def _from_gguf(self, fields: Fields, known: Settings, own: Family) -> Settings:
        listed = fields.get(self.gguf or "")
        counts = set(listed.tolist()) if isinstance(listed, np.ndarray) else set()
        if not isinstance(listed, np.ndarray) or len(listed) != known["layers"] or len(counts - {0}) != 1:
            raise fields.refusal(self.gguf or "", "should list the key-value heads of each layer, or 0")
        return {"kv_heads": max(counts), self.others: tuple(count == 0 for count in listed.tolist())}

    def write(self, known: Settings, gguf: bool) -> Entries:
        if not gguf:
            return super().write(known, gguf)
        counts = [0 if other else known["kv_heads"] for other in known[self.others]]
        return {str(self.gguf): np.array(counts, np.int32)}


class SparseLayers(Row):
    """Which layers are dense: those listed, and those between the steps (Qwen's mixtures of experts)."""

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        if fields.gguf:
            return {}
        step = fields.integer("decoder_sparse_step") if fields.stated("decoder_sparse_step") else 1
        listed = fields.get("mlp_only_layers") or []
        if not isinstance(listed, list) or any(type(n) is not int for n in listed):
            raise fields.refusal("mlp_only_layers", "should be a list of layer numbers")
        return {"dense": tuple(n in listed or (n + 1) % step != 0 for n in range(known["layers"]))}

    def write(self, known: Settings, gguf: bool) -> Entries:
        dense = [n for n, each in enumerate(known["dense"]) if each]
        return {} if gguf else {"decoder_sparse_step": 1, "mlp_only_layers": dense}


@dataclass(frozen=True)
class LayerTypes(Row):
    """Which layers are local, and their window: those of ``layer_types``, or all but every ``pattern``-th.

    ``key`` is that of the pattern, None where configs have none.
    """

    pattern: int
    key: str | None = "sliding_window_pattern"

    def read(self, fields: Fields, known: Settings, own: Family) -> Settings:
        layers = known["layers"]
        if fields.gguf:
            window = fields.integer("attention.sliding_window", None)
            is_local = self._flags(fields, "attention.sliding_window_pattern", layers)
        else:
            pattern = fields.integer(self.key, self.pattern) if self.key else self.pattern
            kinds = fields.each_layer("layer_types", layers, (SLIDING, FULL))
            is_local = every(pattern, layers) if kinds is None else [kind == SLIDING for kind in kinds]
            window = fields.integer("sliding_window", own.defaults.get("window", 4096))
            if fields.has("sliding_window") and fields.get("sliding_window") is None:
                if "window" not in own.nulls:
                    raise fields.refusal("sliding_window", "is null: give it a value, or remove the key")
                window = None
        return {"windows": tuple(window if each else None for each in is_local), "window": window}

    def write(self, known: Settings, gguf: bool) -> Entries:
        is_local = [window is not None for window in known["windows"]]
        window = next(filter(None, known["windows"]), 4096)
        if not gguf:
            return {"sliding_window": window, "layer_types": [SLIDING if each else FULL for each in is_local]}
        entries: Entries = {"attention.sliding_window": window} if any(is_local) else {}
        if entries and is_local != every(self.pattern, len(is_local)):
            entries["attention.sliding_window_pattern"] = np.array(is_local)
        return entries

    def _flags(self, fields: Fields, key: str, layers: int) -> list[bool]:
        """A flag for each layer, as an array of them or as a pattern."""
        stated = fields.get(key)
        if not isinstance(stated, np.ndarray):
            return every(fields.integer(key, self.pattern), layers)
        if stated.dtype != np.bool_ or len(stated) != layers:
            raise fields.refusal(key, f"should be a flag for each of {layers} layers")
        return stated.tolist()


def every(pattern: int, layers: int) -> list[bool]:
    """Which layers are local if every ``pattern``-th is global."""
    return [bool((n + 1) % pattern) for n in range(layers)]


def nope_where_full(known: Settings) -> tuple[bool, ...]:
    """The layers without a window, where only those with one have positions."""
    return tuple(window is None for window in known["windows"])


def same_heads(known: Settings) -> int:
    """As many key-value heads as query heads."""
    return known["heads"]


INVERSE = Kind(lambda fields, key: 1 / fields.number(key), lambda value: 1 / value)
ACTIVATION = words(ACTIVATIONS, HF_ACTIVATIONS)
ACTIVATION_ROW = Field("activation", "hidden_act", None, ACTIVATION)
TOP_K = Kind(lambda fields, key: fields.integer(key, high=EXPERTS))
ANY = (
    Only("is_encoder_decoder", None, (False, None), "a model of an encoder and a decoder"),
    Only("add_cross_attention", None, (False,), "cross-attention"),
    Only(None, "nextn_predict_layers", (0,), "multi-token prediction"),
)
CAUSAL = (Only("is_causal", "attention.causal", (True,), "attention to later tokens"), *ANY)
ONE_MLP = (
    Only(None, "expert_count", (0,), "a mixture of experts"),
    Only(None, "expert_used_count", (0,), "a mixture of experts"),
)
DENSE = (Field("hidden", "intermediate_size", "feed_forward_length", each_layer=True), *ONE_MLP)
SIZES = (
    Field("layers", "num_hidden_layers", "block_count", LAYER_COUNT),
    Vocab("vocab", "vocab_size", "vocab_size"),
    Field("width", "hidden_size", "embedding_length"),
    Field("context", "max_position_embeddings", "context_length"),
    Field("heads", "num_attention_heads", "attention.head_count", each_layer=True),
    Field("kv_heads", "num_key_value_heads", "attention.head_count_kv", missing=same_heads, each_layer=True),
    HeadSize("head_size", "head_dim", "attention.key_length", Kind(_even), missing=shared),
    Rope(),
    Field("eps", "rms_norm_eps", "attention.layer_norm_rms_epsilon", NUMBER),
    ACTIVATION_ROW,
    Present("tied", "tie_word_embeddings", "output.weight", absent=True),
    *CAUSAL,
)


def turning(rows: Sequence[Row], **changes: Any) -> tuple[Row, ...]:
    """The rows with other rotary positions."""
    return tuple(replace(row, **changes) if type(row) is Rope else row for row in rows)


GROUPS = (
    Field("groups", "n_group", None),
    Field("top_groups", "topk_group", None),
    Field("normalised", "norm_topk_prob", None, FLAG),
)
ROUTED_SCALE = Field("routed_scale", "routed_scaling_factor", None, NUMBER)
SIGMOID = {"score": "sigmoid", "choice_bias": True, "group_of_two": True}  # DeepSeek-V3's router
EXPERT_HIDDEN = ("moe_intermediate_size", "expert_feed_forward_length")
EXPERTS_IN_GGUF = (
    Only(None, "expert_gating_func", (1,), "another score of experts than softmax"),
    Only(None, "expert_weights_scale", (1.0,), "scaling the experts' outputs"),
    Only(None, "expert_group_count", (0, 1), "routing to groups of experts"),
)


def biases(*keys: str) -> tuple[Present, ...]:
    """Rows for a bias on query, key and value and one on the output, by one key of config.json."""
    return (
        Present("bias", *keys, "blk.0.attn_q.bias"),  # type: ignore[arg-type]
        Present("out_bias", *keys, "blk.0.attn_output.bias"),  # type: ignore[arg-type]
    )


def experts(count: str, hidden: tuple[str, str], alias: str | None = None) -> tuple[Field | Only, ...]:
    """Rows for a mixture of experts: the key of their number, and the two of their width."""
    return (
        Field("experts", count, "expert_count", TOP_K, alias=alias),
        Field("top_k", "num_experts_per_tok", "expert_used_count", TOP_K),
        Field("expert_hidden", *hidden, each_layer=True),
        *EXPERTS_IN_GGUF,
    )


# ---- names of weights --------------------------------------------------------------------------------------


def pairs(*names: tuple[str, str], parts: Sequence[str] = ("weight", "bias")) -> tuple[Rule, ...]:
    """Rules for modules whose weights are stored unchanged."""
    return tuple(Rule(f"{theirs}.{part}", f"{ours}.{part}", same) for theirs, ours in names for part in parts)


def weights(*names: tuple[str, str]) -> tuple[Rule, ...]:
    """The same for modules without a bias."""
    return pairs(*names, parts=("weight",))


def renamed(
    rules: Sequence[Rule], *changes: tuple[str, str], without: Sequence[str] = ()
) -> tuple[Rule, ...]:
    """The rules with a part of their names changed, one change after another, but those that hold a word."""
    kept = []
    for rule in rules:
        theirs = rule.theirs
        if any(word in theirs for word in without):
            continue
        for old, new in changes:
            theirs = theirs.replace(old, new)
        kept.append(replace(rule, theirs=theirs))
    return tuple(kept)


def query_key_value(part: str) -> tuple[str, str, str]:
    """Our three matrices, or biases, that some families have in one."""
    return tuple(f"blocks.{{n}}.attention.{name}.{part}" for name in ("query", "key", "value"))  # type: ignore


HF_DECODER = (
    *pairs(
        ("model.embed_tokens", "embedding"),
        ("lm_head", "head"),
        ("model.norm", "norm"),
        ("model.layers.{n}.self_attn.q_proj", "blocks.{n}.attention.query"),
        ("model.layers.{n}.self_attn.k_proj", "blocks.{n}.attention.key"),
        ("model.layers.{n}.self_attn.v_proj", "blocks.{n}.attention.value"),
        ("model.layers.{n}.self_attn.o_proj", "blocks.{n}.attention.out"),
        ("model.layers.{n}.mlp.gate_proj", "blocks.{n}.mlp.gate"),
        ("model.layers.{n}.mlp.up_proj", "blocks.{n}.mlp.up"),
        ("model.layers.{n}.mlp.down_proj", "blocks.{n}.mlp.down"),
        ("model.layers.{n}.input_layernorm", "blocks.{n}.attention_norm"),
        ("model.layers.{n}.post_attention_layernorm", "blocks.{n}.mlp_norm"),
    ),
)
HF_SANDWICH = renamed(  # Gemma's names
    (
        *HF_DECODER,
        *pairs(
            ("model.layers.{n}.post_feedforward_layernorm", "blocks.{n}.mlp_post_norm"),
            ("model.layers.{n}.after_attention", "blocks.{n}.attention_post_norm"),
        ),
    ),
    ("post_attention_layernorm", "pre_feedforward_layernorm"),
    ("after_attention", "post_attention_layernorm"),
)
HF_GATE_UP = (
    *renamed(HF_DECODER, without=("gate_proj", "up_proj")),
    Rule(
        "model.layers.{n}.mlp.gate_up_proj.weight",
        ("blocks.{n}.mlp.gate.weight", "blocks.{n}.mlp.up.weight"),
        split,
    ),
)
HF_QK_NORM = weights(
    ("model.layers.{n}.self_attn.q_norm", "blocks.{n}.attention.query_norm"),
    ("model.layers.{n}.self_attn.k_norm", "blocks.{n}.attention.key_norm"),
)
HF_EXPERTS = weights(  # of Qwen's mixtures
    ("model.layers.{n}.mlp.gate", "blocks.{n}.mlp.router"),
    ("model.layers.{n}.mlp.experts.{e}.gate_proj", "blocks.{n}.mlp.experts.{e}.gate"),
    ("model.layers.{n}.mlp.experts.{e}.up_proj", "blocks.{n}.mlp.experts.{e}.up"),
    ("model.layers.{n}.mlp.experts.{e}.down_proj", "blocks.{n}.mlp.experts.{e}.down"),
)


def one_more(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules of a family whose norms hold w where x is multiplied by w + 1."""
    return tuple(replace(rule, how=plus_one) if "norm" in rule.ours else rule for rule in rules)


HF_DEEPSEEK_EXPERTS = (
    *HF_EXPERTS,
    Rule("model.layers.{n}.mlp.gate.e_score_correction_bias", "blocks.{n}.mlp.choice_bias", same),
    *weights(
        ("model.layers.{n}.mlp.shared_experts.gate_proj", "blocks.{n}.mlp.shared.gate"),
        ("model.layers.{n}.mlp.shared_experts.up_proj", "blocks.{n}.mlp.shared.up"),
        ("model.layers.{n}.mlp.shared_experts.down_proj", "blocks.{n}.mlp.shared.down"),
    ),
)
GGUF_EMBEDDINGS = weights(("token_embd", "embedding"), ("output", "head"), ("output_norm", "norm"))
GGUF_QUERY_KEY = (
    ("blk.{n}.attn_q", "blocks.{n}.attention.query"),
    ("blk.{n}.attn_k", "blocks.{n}.attention.key"),
)
GGUF_VALUE = ("blk.{n}.attn_v", "blocks.{n}.attention.value")
GGUF_OUT = ("blk.{n}.attn_output", "blocks.{n}.attention.out")
GGUF_MLP = (
    ("blk.{n}.ffn_gate", "blocks.{n}.mlp.gate"),
    ("blk.{n}.ffn_up", "blocks.{n}.mlp.up"),
    ("blk.{n}.ffn_down", "blocks.{n}.mlp.down"),
)
GGUF_NORMS = weights(
    ("blk.{n}.attn_norm", "blocks.{n}.attention_norm"), ("blk.{n}.ffn_norm", "blocks.{n}.mlp_norm")
)
GGUF_PLAIN = (  # without biases, which llama.cpp does not read in most families
    *GGUF_EMBEDDINGS,
    *GGUF_NORMS,
    *weights(*GGUF_QUERY_KEY, GGUF_VALUE, GGUF_OUT, *GGUF_MLP),
)
GGUF_BIASED = pairs(  # with biases, also those of layer norms
    ("token_embd", "embedding"),
    ("output", "head"),
    ("output_norm", "norm"),
    ("blk.{n}.attn_norm", "blocks.{n}.attention_norm"),
    ("blk.{n}.ffn_norm", "blocks.{n}.mlp_norm"),
    *GGUF_QUERY_KEY,
    GGUF_VALUE,
    GGUF_OUT,
    *GGUF_MLP,
)
GGUF_BIASED_QKV = (  # the same, with query, key and value in one
    *renamed(GGUF_BIASED, without=("attn_q", "attn_k", "attn_v")),
    *(Rule(f"blk.{{n}}.attn_qkv.{part}", query_key_value(part), split) for part in ("weight", "bias")),
)
GGUF_SANDWICH = weights(
    ("blk.{n}.post_attention_norm", "blocks.{n}.attention_post_norm"),
    ("blk.{n}.post_ffw_norm", "blocks.{n}.mlp_post_norm"),
)
GGUF_GATE_UP = (
    *GGUF_EMBEDDINGS,
    *GGUF_NORMS,
    *pairs(*GGUF_QUERY_KEY, GGUF_VALUE),
    *weights(GGUF_OUT, GGUF_MLP[2]),
    Rule("blk.{n}.ffn_up.weight", ("blocks.{n}.mlp.gate.weight", "blocks.{n}.mlp.up.weight"), split),
)
GGUF_QK_NORM = weights(
    ("blk.{n}.attn_q_norm", "blocks.{n}.attention.query_norm"),
    ("blk.{n}.attn_k_norm", "blocks.{n}.attention.key_norm"),
)
GGUF_EXPERTS = (
    *weights(("blk.{n}.ffn_gate_inp", "blocks.{n}.mlp.router")),
    Rule("blk.{n}.ffn_gate_exps.weight", "blocks.{n}.mlp.experts.{e}.gate.weight", stack),
    Rule("blk.{n}.ffn_up_exps.weight", "blocks.{n}.mlp.experts.{e}.up.weight", stack),
    Rule("blk.{n}.ffn_down_exps.weight", "blocks.{n}.mlp.experts.{e}.down.weight", stack),
)
GGUF_CHOICE_BIAS = (Rule("blk.{n}.exp_probs_b.bias", "blocks.{n}.mlp.choice_bias", same),)
GGUF_SHARED_EXPERT = (
    Rule("blk.{n}.ffn_gate_inp_shexp.weight", "blocks.{n}.mlp.shared_gate.weight", row),
    *weights(
        ("blk.{n}.ffn_gate_shexp", "blocks.{n}.mlp.shared.gate"),
        ("blk.{n}.ffn_up_shexp", "blocks.{n}.mlp.shared.up"),
        ("blk.{n}.ffn_down_shexp", "blocks.{n}.mlp.shared.down"),
    ),
)
