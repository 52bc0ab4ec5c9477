"""A model's weights made small: each matrix gets the type of a mix (quantization/mixes.py), its blocks fitted
by search (quantization/search.py).

A file that keeps query, key and value in one matrix has all three as value would be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import Later, Packed
from cutaway.layers.config import MoE
from cutaway.model.block_config import Block
from cutaway.model.config import EncoderDecoder
from cutaway.quantization import formats, search
from cutaway.quantization.mixes import SMALLER, Mix, Place, mix_named, type_of_logits
from cutaway.weights import family_registry, named_tensors, rules
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.family_match import folded
from cutaway.weights.named_tensors import Tensors
from cutaway.weights.retype import counted, fitting, makes_logits, retyped, stored_bytes

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
        values = formats.unpack(packed)
        if packed.type == type:
            if not np.isfinite(values).all():
                raise UserError("it holds a number that is infinite or NaN")
            return packed
        if type not in search.FITTED:
            return formats.pack(values, type)
        counts = (importance or {}).get(name)  # of an absorbed matrix that of its rows
        return search.pack(values, type, None if name.endswith(ABSORBED) else counts)

    def choose(name: str, entry: Packed | Later) -> str:
        if named_tensors.is_kept_whole(name, entry.shape):
            return "F32"
        if makes_logits(name, config):
            return fitting(entry, type_of_logits(mix.type, entry.shape[-1]), SMALLER, notes)
        return fitting(entry, exceptions.get(name, mix.type), SMALLER, notes)

    whole = named_tensors.all_absorbed(checkpoint.tensors, config)
    small = replace(checkpoint, tensors=retyped(whole, choose, pack))
    return Quantized(small, mix.file_type, counted(notes))


def in_types_of(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    """The checkpoint with each weight as its base stores it: what an adapter changed is packed again.

    A type that is read and not written (``formats.READERS`` without a writer) stays F32."""

    def choose(name: str, entry: Packed | Later) -> str:
        own = name if name in base.tensors else "embedding.weight"  # a head that an adapter untied
        type = base.tensors.later(own).type
        return type if type in search.FITTED or type in formats.WRITERS else entry.type

    def pack(name: str, packed: Packed, type: str) -> Packed:
        if packed.type == type:
            return packed
        values = formats.unpack(packed)
        return search.pack(values, type) if type in search.FITTED else formats.pack(values, type)

    return replace(checkpoint, tensors=retyped(checkpoint.tensors, choose, pack))


def check_smaller(source: object, before: Tensors, after: Tensors, kind: str) -> None:
    """UserError if the weights do not get smaller: they would only be rounded once more."""
    old, new = stored_bytes(before), stored_bytes(after)
    if new >= old:
        types = ", ".join(sorted({before.later(name).type for name in before} - {"F32"}) or ["F32"])
        raise UserError(
            f"{source}: its weights take {old:,} bytes ({types}) and would take {new:,} as {kind}: nothing "
            "is gained, and each is rounded again; choose a smaller type, or give --force"
        )


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
            part, number, *_ = ours.split(".")  # the layers of heads that draft come after the last
            after = len(checkpoint.config.blocks) if part == "mtp" else 0
            layers.setdefault((int(number) + after, theirs), []).append(ours)
    return [(layer, ours) for (layer, _), ours in sorted(layers.items())]


def _file_names(checkpoint: Checkpoint) -> dict[str, str]:
    """Each weight's name in the family's GGUF file, by our name; ours again without a family."""
    table = family_registry.get(checkpoint.family).gguf if checkpoint.family else ()
    if not table:
        return {name: name for name in checkpoint.tensors}
    bound = rules.bind(table, checkpoint.config)
    return {name: each.theirs for each in bound for name in each.ours}
