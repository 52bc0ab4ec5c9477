"""Rotary positions as keys of a config.json and of GGUF metadata, and the divisors that GGUF has as tensors.

``config.json`` is read in the layout of transformers 5 (``rope_parameters``) and in the older one
(``rope_theta``, ``rope_scaling``), and written in the older one, which both read. GGUF keys are llama.cpp's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import Packed, made
from cutaway.gguf.architectures import DIVISORS, LONG_DIVISORS
from cutaway.model.config import Model
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
from cutaway.quantization import formats
from cutaway.weights.family import Entries, Family, Row, Settings
from cutaway.weights.fields import Fields

ROPE_FREQS = "rope_freqs.weight"
LONG, SHORT = LONG_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
STILL = 1e30  # llama.cpp's divisor of a pair that does not rotate
LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
}  # config.json's keys, ours
ORIGINAL = "original_max_position_embeddings"
LLAMA3 |= {ORIGINAL: "original"}


@dataclass(frozen=True)
class Rope(Row):
    """Rotary position embedding. ``defaults`` hold its ``rope_base``.

    ``part`` of a head rotates where the config does not say; None: all of it, and a part is refused.
    """

    name: ClassVar[str] = "rope"
    part: float | None = None
    interleaved: bool = False
    required: bool = False  # refuses a config that says nothing, for which transformers has a scaling
    betas: bool = False  # llama.cpp's architecture reads YaRN's

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
        found = self.rotating(given, top)
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
        if isinstance(scaling, LongRoPE):
            scaling = _spread(scaling, size // 2, given)
        given.finish((ORIGINAL,), "these rotary positions have")
        if isinstance(scaling, Proportional):
            size, scaling = known["head_size"], replace(scaling, fraction=found)
        return rope.Config(size, base, scaling, self.interleaved)

    def of_kind(self, given: Fields | None, known: Settings, base: float) -> rope.Config:
        """The positions of a section that layers of one type have to themselves."""
        if given and given.has("truncate") and given.get("truncate") is not True:
            why = "is not true, but transformers truncates where positions are those of one type of layers:"
            raise given.refusal("truncate", f"{why} remove the key to do so too")
        return self.of(given, known, base)

    def rotating(self, given: Fields | None, top: Fields | None) -> float:
        """The part of a head that rotates: the section's, else that beside it."""
        key = "partial_rotary_factor"
        for fields in (given, top):
            if fields is None or not fields.has(key):
                continue
            if self.part is None:
                fields.only(key, (None, 1.0), "partial rotary position embedding")
            elif fields.stated(key):  # null is refused: it is another part than the class has by default
                if top:
                    top.get(key)
                return fields.number(key, high=1.0)
        return 1.0 if self.part is None else self.part

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
                entries |= self._betas_in_gguf(fast, slow)
                low, high = position.scaling.ends(rope.Config(position.size, position.base).frequencies())
                if high < low:
                    why = f"an original context of {original} tokens, too short to blend frequencies over,"
                    raise UserError(f"YaRN of {why} is not supported in GGUF")
                if attention is not None and attention != sharpening(factor):
                    entries["rope.scaling.attn_factor"] = attention / sharpening(factor)
            case LongRoPE(original=original) as scaling:
                entries["rope.scaling.original_context_length"] = original
                entries["rope.scaling.attn_factor"] = scaling.magnitude
        return entries

    def _betas_in_gguf(self, fast: float, slow: float) -> Entries:
        """YaRN's turns, of which most of llama.cpp's architectures read no key."""
        found = {"beta_fast": (fast, 32.0), "beta_slow": (slow, 1.0)}
        found = {key: own for key, (own, usual) in found.items() if own != usual}
        if found and not self.betas:
            named = " and ".join(f"{key} {own:g}" for key, own in found.items())
            raise UserError(f"YaRN of {named} is not supported in GGUF: llama.cpp takes 32 and 1 here")
        return {f"rope.scaling.yarn_{key}": own for key, own in found.items()}


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


def _spread(scaling: LongRoPE, pairs: int, given: Fields) -> LongRoPE:
    """The scaling with a divisor for each pair; a list of one divisor is for all pairs."""
    found = {}
    for name in ("short", "long"):
        listed = getattr(scaling, name)
        if len(listed) not in (1, pairs):
            raise given.refusal(f"{name}_factor", f"lists {len(listed)} divisors, but {pairs} pairs rotate")
        found[name] = listed * pairs if len(listed) == 1 else listed
    return replace(scaling, **found)


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
        attention = None
        if fields.has("rope.scaling.attn_factor"):
            attention = fields.number("rope.scaling.attn_factor") * sharpening(factor)
        stated = fields.number("rope.scaling.yarn_attn_factor", None)
        if stated is not None and abs(stated - sharpening(factor)) > 1e-5:
            why = f"is {stated:g}, a scale of angles that llama.cpp does not read: it takes"
            raise fields.refusal("rope.scaling.yarn_attn_factor", f"{why} {sharpening(factor):g}")
        fields.only("rope.scaling.yarn_ext_factor", (-1.0, 1.0), "YaRN in part")
        original = fields.integer("rope.scaling.original_context_length")
        scaling = YaRN(factor, original, fast or 32.0, slow or 1.0, attention)
    base = fields.number("rope.freq_base", 10000.0, 1.0)
    if LONG in fields.tensors or SHORT in fields.tensors:
        return rope.Config(size, base, _gguf_longrope(fields, size))
    if kind is not YaRN:
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
    return rope.Config(size, base, recognised(plain, formats.unpack(made(ROPE_FREQS, divisors)), original))


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
        numbers = formats.unpack(made(name, divisors))
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


def gguf_extras(config: Model, architecture: str) -> dict[str, Packed]:
    """The tensors of divisors, for scalings that GGUF has no keys for, where llama.cpp reads them."""
    positions = (block.attention.position for block in config.blocks)
    for position in (each for each in positions if each is not None):
        scaling = position.scaling
        if isinstance(scaling, Llama3 | Factors | Proportional) and architecture in DIVISORS:
            return {ROPE_FREQS: formats.pack(divisors_of(position, scaling), "F32")}
        if isinstance(scaling, LongRoPE) and architecture in LONG_DIVISORS:
            both = zip(LONG_FACTORS, (scaling.long, scaling.short), strict=True)
            return {name: formats.pack(np.array(divisors, np.float32), "F32") for name, divisors in both}
    return {}
