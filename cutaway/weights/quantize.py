"""A model's weights made small: which type each matrix gets, and its blocks fitted (weights/quant_search.py).

``MIXES`` is the table of what can be asked for, under llama.cpp's names and with its layout, tensor by
tensor: most matrices get the mix's own type, the value matrices, the MLP's last ones and the heads' output
another one in the layers where errors cost more. For all mixes alike,

- the matrix that makes the logits (the head, or the embedding table where it is the head) is Q6_K, but Q8_0
  for Q8_0 and where its rows are not whole blocks: every error in it is an error of a logit;
- models of 8 experts have Q8_0 values and keys;
- Llama and Qwen 2 with 80 layers and grouped heads have Q5_K values where those would be Q3_K or Q4_K;
- rows that are not whole blocks of 256 get a type of blocks of 32 (``SMALLER``); rows that are not whole
  blocks of 32 are F16;
- vectors, learned positions, and what routes tokens to experts stay F32.

A file that keeps query, key and value in one matrix has all three as value would be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import TYPES, Later, Packed
from cutaway.layers.config import MoE
from cutaway.model.config import Block, EncoderDecoder
from cutaway.weights import families, quant, quant_search, rules
from cutaway.weights.load import Checkpoint
from cutaway.weights.quant import type_named
from cutaway.weights.rules import Tensors
from cutaway.weights.save import counted, fitting, folded, makes_logits, retyped, stored_bytes

# For rows that are not whole blocks of 256.
SMALLER = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}


class Place(NamedTuple):
    """Where a matrix is: ``n`` of the ``count`` layers that have one like it, and in what model."""

    n: int
    count: int
    grouped: bool  # four or more query heads share a key-value head
    calibrated: bool  # there is an importance of columns
    experts: int


def _all(_: Place) -> bool:
    return True


def _grouped(at: Place) -> bool:
    return at.grouped


def _eight_experts(at: Place) -> bool:
    return at.experts == 8


def _first(layers: int) -> Callable[[Place], bool]:
    return lambda at: at.n < layers


def _first_part(parts: int) -> Callable[[Place], bool]:
    return lambda at: at.n < at.count // parts


def _more(at: Place) -> bool:
    """The first and last eighth of the layers, and every third between."""
    eighth = at.count // 8
    return at.n < eighth or at.n >= 7 * at.count // 8 or (at.n - eighth) % 3 == 2


def _early(calibrated: bool) -> Callable[[Place], bool]:
    """The first eighth of the layers, with or without an importance of columns."""
    return lambda at: at.n < at.count // 8 and at.calibrated == calibrated


Exceptions = tuple[tuple[str, Callable[[Place], bool]], ...]  # the first that holds counts


@dataclass(frozen=True)
class Mix:
    """GGUF's number of the file type, the type of most matrices, and what is another one, and where."""

    file_type: int
    type: str
    value: Exceptions = ()
    down: Exceptions = ()
    out: Exceptions = ()


EIGHT = ("Q5_K", _eight_experts)
MORE = (("Q6_K", _more),)
IQ4 = {"value": (("Q5_K", _grouped),), "down": (("Q5_K", _early(calibrated=False)),), "out": (EIGHT,)}
MIXES: dict[str, Mix] = {
    "Q8_0": Mix(7, "Q8_0"),
    "Q6_K": Mix(18, "Q6_K"),
    "Q5_K_M": Mix(17, "Q5_K", value=MORE, down=MORE),
    "Q5_K_S": Mix(16, "Q5_K"),
    "Q5_1": Mix(9, "Q5_1"),
    "Q5_0": Mix(8, "Q5_0", down=(("Q5_1", _early(calibrated=True)),)),
    "Q4_K_M": Mix(15, "Q4_K", value=MORE, down=MORE, out=(EIGHT,)),
    "Q4_K_S": Mix(14, "Q4_K", value=(("Q5_K", _first(4)),), down=(("Q5_K", _first_part(8)),), out=(EIGHT,)),
    "Q4_1": Mix(3, "Q4_1"),
    "Q4_0": Mix(2, "Q4_0", down=(("Q4_1", _early(calibrated=True)),)),
    "IQ4_NL": Mix(25, "IQ4_NL", **IQ4),
    "IQ4_XS": Mix(30, "IQ4_XS", **IQ4),
    "Q3_K_L": Mix(
        13,
        "Q3_K",
        value=(("Q5_K", _all),),
        down=(("Q5_K", _all),),
        out=(("Q3_K", _eight_experts), ("Q5_K", _all)),
    ),
    "Q3_K_M": Mix(
        12,
        "Q3_K",
        value=(("Q5_K", _first(2)), ("Q4_K", _all)),
        down=(("Q5_K", _first_part(16)), ("Q4_K", _all)),
        out=(EIGHT, ("Q4_K", _all)),
    ),
    "Q3_K_S": Mix(11, "Q3_K", out=(EIGHT,)),
    "Q2_K": Mix(
        10,
        "Q2_K",
        value=(("Q4_K", _grouped), ("Q3_K", _all)),
        down=(("Q3_K", _all),),
        out=(EIGHT, ("Q3_K", _all)),
    ),
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}  # llama.cpp's too
KINDS = (*MIXES, *ALIASES)
# The names that decide, as GGUF has them or, where no family names the weights, as they are here.
ROLES = {
    "value": (".attn_v.weight", ".attn_qkv.weight", ".attn_kv_b.weight", ".attention.value.weight"),
    "key": (".attn_k.weight", ".attention.key.weight"),
    "out": (".attn_output.weight", ".attention.out.weight"),
    "down": (".ffn_down.weight", ".ffn_down_exps.weight", ".ffn_down_shexp.weight", ".down.weight"),
}
ABSORBED = ".attention.key_up.weight"
Importance = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Quantized:
    """The checkpoint with its weights to be packed when they are asked for, and what to know about it."""

    checkpoint: Checkpoint
    file_type: int
    notes: tuple[str, ...]


def quantized(checkpoint: Checkpoint, kind: str, importance: Importance | None = None) -> Quantized:
    """A checkpoint whose matrices are of the mix ``kind``, one of ``KINDS``.

    ``importance``: by weight name, how much each column counts, as ``inspect/importance.py`` finds it or
    ``weights/imatrix.py`` reads it; a matrix that it does not name counts all columns the same. A matrix that
    is stored as its type already is left as it is. Raises UserError for a name that is none of ``KINDS``; a
    weight that cannot be packed is refused by name when it is made."""
    mix = mix_named(kind)
    if isinstance(checkpoint.config, EncoderDecoder):
        raise UserError(f"{checkpoint.source}: is an encoder-decoder, whose weights are not quantized")
    notes: Counter[str] = Counter()
    checkpoint = folded(checkpoint, notes)
    config, exceptions = checkpoint.config, _exceptions(checkpoint, mix, importance is not None)

    def pack(name: str, packed: Packed, type: str) -> Packed:
        values = quant.unpack(packed)
        if packed.type == type:
            if not np.isfinite(values).all():
                raise UserError("it holds a number that is infinite or NaN")
            return packed
        if type not in quant_search.FITTED:
            return quant.pack(values, type)
        counts = (importance or {}).get(name)  # of an absorbed matrix that of its rows
        return quant_search.pack(values, type, None if name.endswith(ABSORBED) else counts)

    def choose(name: str, entry: Packed | Later) -> str:
        if rules.is_kept_whole(name, entry.shape):
            return "F32"
        if makes_logits(name, config):
            return fitting(entry, _of_logits(mix.type, entry.shape[-1]), SMALLER, notes)
        return fitting(entry, exceptions.get(name, mix.type), SMALLER, notes)

    whole = rules.all_absorbed(checkpoint.tensors, config)
    small = replace(checkpoint, tensors=retyped(whole, choose, pack))
    return Quantized(small, mix.file_type, counted(notes))


def in_types_of(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    """The checkpoint with each weight as its base stores it: what an adapter changed is packed again.

    A type that is read and not written (``quant.READERS`` without a writer) stays F32."""

    def choose(name: str, entry: Packed | Later) -> str:
        own = name if name in base.tensors else "embedding.weight"  # a head that an adapter untied
        type = base.tensors.later(own).type
        return type if type in quant_search.FITTED or type in quant.WRITERS else entry.type

    def pack(name: str, packed: Packed, type: str) -> Packed:
        if packed.type == type:
            return packed
        values = quant.unpack(packed)
        return quant_search.pack(values, type) if type in quant_search.FITTED else quant.pack(values, type)

    return replace(checkpoint, tensors=retyped(checkpoint.tensors, choose, pack))


def mix_named(kind: str) -> Mix:
    """The mix of one of ``KINDS``, in any case; UserError for another name."""
    kind = type_named(kind, KINDS)
    return MIXES[ALIASES.get(kind, kind)]


def check_smaller(source: object, before: Tensors, after: Tensors, kind: str) -> None:
    """UserError if the weights do not get smaller: they would only be rounded once more."""
    old, new = stored_bytes(before), stored_bytes(after)
    if new >= old:
        types = ", ".join(sorted({before.later(name).type for name in before} - {"F32"}) or ["F32"])
        raise UserError(
            f"{source}: its weights take {old:,} bytes ({types}) and would take {new:,} as {kind}: nothing "
            "is gained, and each is rounded again; choose a smaller type, or give --force"
        )


def _of_logits(type: str, columns: int) -> str:
    return "Q8_0" if type == "Q8_0" or columns % TYPES[type].block else "Q6_K"


def _exceptions(checkpoint: Checkpoint, mix: Mix, calibrated: bool) -> dict[str, str]:
    """The type of each weight of ours whose name decides it."""
    blocks = checkpoint.config.blocks
    experts = max((each.mlp.experts for each in blocks if isinstance(each.mlp, MoE)), default=1)
    shared = _queries_a_key(blocks[0]) if blocks else 1
    large = checkpoint.family in ("llama", "qwen2") and len(blocks) == 80 and shared > 1
    found: dict[str, str] = {}
    for role, names in ROLES.items():
        layers = _layers_with(checkpoint, names)
        count = len(blocks) if role == "down" else len(layers)
        for n, (layer, ours) in enumerate(layers):
            at = Place(layer if experts > 1 else n, count, shared >= 4, calibrated, experts)
            type = next((type for type, holds in getattr(mix, role, ()) if holds(at)), mix.type)
            if role == "value" and large and type in ("Q3_K", "Q4_K"):
                type = "Q5_K"
            if role in ("value", "key") and experts == 8:
                type = "Q8_0"
            found |= dict.fromkeys(ours, type)
    return found


def _queries_a_key(block: Block) -> int:
    heads, groups = (getattr(block.attention, name, None) for name in ("heads", "groups"))
    return heads // groups if heads and groups else 1


def _layers_with(checkpoint: Checkpoint, names: tuple[str, ...]) -> list[tuple[int, list[str]]]:
    """Each layer that has a matrix of one of these names, and our weights that it is made of."""
    layers: dict[tuple[int, str], list[str]] = {}
    for ours, theirs in _file_names(checkpoint).items():
        if theirs.endswith(names):
            layers.setdefault((int(ours.split(".")[1]), theirs), []).append(ours)
    return [(layer, ours) for (layer, _), ours in sorted(layers.items())]


def _file_names(checkpoint: Checkpoint) -> dict[str, str]:
    """By our name of each weight, that in the family's GGUF file, or ours again where there is no family."""
    table = families.get(checkpoint.family).gguf if checkpoint.family else ()
    if not table:
        return {name: name for name in checkpoint.tensors}
    bound = rules.bind(table, checkpoint.config)
    return {name: each.theirs for each in bound for name in each.ours}
