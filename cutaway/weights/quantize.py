"""A model's weights made small: which type each matrix gets, and its blocks fitted (weights/quant_search.py).

Asked for one type, most matrices get it, with these exceptions, which are llama.cpp's:

- the matrix that makes the logits (the head, or the embedding table where it is the head) is Q6_K, but for
  Q8_0: every error in it is an error of a logit;
- for Q4_K, the value matrix and the MLP's last one are Q6_K in the first and last eighth of the layers and in
  every third between, as in llama.cpp's Q4_K_M; where a family's file keeps query, key and value in one
  matrix, value is what the others are;
- rows that are not whole blocks of 256 are Q5_0 for Q4_K and Q8_0 for Q6_K; rows that are not whole blocks of
  32 are F16;
- vectors, learned positions, and what routes tokens to experts stay F32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import Later, Packed
from cutaway.model.config import Decoder, Encoder
from cutaway.weights import families, quant, quant_search, rules
from cutaway.weights.load import Checkpoint
from cutaway.weights.quant import type_named
from cutaway.weights.rules import Tensors
from cutaway.weights.save import counted, fitting, makes_logits, retyped, stored_bytes

KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
SMALLER = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # for rows that are not whole blocks of 256
Importance = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Quantized:
    """The checkpoint with its weights to be packed when they are asked for, and what to know about it."""

    checkpoint: Checkpoint
    notes: tuple[str, ...]


def quantized(checkpoint: Checkpoint, kind: str, importance: Importance | None = None) -> Quantized:
    """A checkpoint whose matrices are of the type ``kind``, one of ``KINDS``, with the exceptions above.

    ``importance``: by weight name, how much each column counts, as ``inspect/importance.py`` finds it; a
    matrix that it does not name counts all columns the same. A matrix that is stored as its type already is
    left as it is. Raises UserError for a type that is none of ``KINDS``; a weight that cannot be packed is
    refused by name when it is made."""
    kind = type_named(kind, KINDS)
    notes: Counter[str] = Counter()
    alone, config = _alone(checkpoint), checkpoint.config

    def pack(name: str, packed: Packed, type: str) -> Packed:
        values = quant.unpack(packed)
        if packed.type == type:
            if not np.isfinite(values).all():
                raise UserError("it holds a number that is infinite or NaN")
            return packed
        if type not in quant_search.FITTED:
            return quant.pack(values, type)
        return quant_search.pack(values, type, (importance or {}).get(name))

    def choose(name: str, entry: Packed | Later) -> str:
        return _type(name, entry, kind, config, alone, notes)

    return Quantized(replace(checkpoint, tensors=retyped(checkpoint.tensors, choose, pack)), counted(notes))


def check_smaller(source: object, before: Tensors, after: Tensors, kind: str) -> None:
    """UserError if the weights do not get smaller: they would only be rounded once more."""
    old, new = stored_bytes(before), stored_bytes(after)
    if new >= old:
        types = ", ".join(sorted({before.later(name).type for name in before} - {"F32"}) or ["F32"])
        raise UserError(
            f"{source}: its weights take {old:,} bytes ({types}) and would take {new:,} as {kind}: nothing "
            "is gained, and each is rounded again; choose a smaller type, or give --force"
        )


def _type(
    name: str,
    entry: Packed | Later,
    kind: str,
    config: Decoder | Encoder,
    alone: frozenset[str],
    notes: Counter[str],
) -> str:
    if rules.is_kept_whole(name, entry.shape):
        return "F32"
    if makes_logits(name, config):
        kind = "Q8_0" if kind == "Q8_0" else "Q6_K"
    elif kind == "Q4_K" and name in alone and _counts_more(name, len(config.blocks)):
        kind = "Q6_K"
    return fitting(entry, kind, SMALLER, notes)


def _counts_more(name: str, layers: int) -> bool:
    """Whether this is a value matrix, or an MLP's or an expert's last, in a layer where errors cost more."""
    if not name.endswith((".attention.value.weight", ".down.weight")):
        return False
    layer, eighth = int(name.split(".")[1]), layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _alone(checkpoint: Checkpoint) -> frozenset[str]:
    """The weights that the family's GGUF file keeps as matrices, alone or stacked by expert."""
    if checkpoint.family is None:
        return frozenset(checkpoint.tensors)
    bound = rules.bind(families.get(checkpoint.family).gguf, checkpoint.config)
    alone = [each for each in bound if len(each.ours) == 1 or each.how is rules.stack]
    return frozenset(name for each in alone for name in each.ours)
