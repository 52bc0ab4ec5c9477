"""Adapters in llama.cpp's form: a GGUF file beside the base's, pairs under the base's own names of tensors.

    blk.0.attn_q.weight.lora_a [r in]      blk.0.attn_q.weight.lora_b [out r]
    y = W x + s B (A x)                    s = alpha / r, or 1 where adapter.lora.alpha is 0

Written with the scale in B and alpha 0, since one alpha cannot state ranks and scales that differ. The rows
of B are in the base file's order, which for llama's queries and keys is not Hugging Face's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cutaway import gguf
from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed
from cutaway.weights import families, quant, rules
from cutaway.weights.adapters import Adapter, LowRank, check, side_by_side
from cutaway.weights.family import Family
from cutaway.weights.load import Checkpoint
from cutaway.weights.rules import Bound

ALPHA = "adapter.lora.alpha"


def write(path: Path, adapter: Adapter, base: Checkpoint, force: bool = False) -> None:
    """Write low-rank changes for the GGUF of ``base``. UserError for changes of another kind: llama.cpp has
    no DoRA, IA3 or saved modules.
    """
    for name, change in adapter.items():
        if not isinstance(change, LowRank) or change.magnitude is not None:
            raise UserError(
                f"{path}: llama.cpp reads LoRA alone, and {name} has a magnitude, factors or a weight of its "
                "own: write base and adapter as one model (`cutaway merge`)"
            )
    family, bound = _bound(base, path)
    tensors: dict[str, Packed] = {}
    written = 0
    for theirs, each in bound.items():
        found = [adapter.get(ours) for ours in each.ours]
        if not any(found):
            continue
        shapes = each.place.shapes
        _check_rows(each, path)
        a, b, _ = side_by_side(found, shapes)
        parts = np.split(b, np.cumsum([shape[0] for shape in shapes])[:-1])
        tensors[f"{theirs}.lora_a"] = quant.pack(a, "F32")
        tensors[f"{theirs}.lora_b"] = each.how.save(
            tuple(quant.pack(np.ascontiguousarray(part), "F32") for part in parts), each.place
        )
        written += sum(one is not None for one in found)
    if written < len(adapter):
        raise UserError(f"{path}: GGUF has no matrices for {len(adapter) - written} of the adapter's changes")
    metadata = {
        "general.type": "adapter",
        "general.architecture": family.gguf_name_of(base.config),
        "adapter.type": "lora",
        ALPHA: np.float32(0),
    }
    gguf.write(path, metadata, tensors, force=force)


def read(path: Path, base: Checkpoint) -> Adapter:
    """The adapter of a file for ``base``. UserError for one of another model, or that is none."""
    file = gguf.read(path)
    family, bound = _bound(base, path)
    name = family.gguf_name_of(base.config)
    meant = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": name}
    for key, value in meant.items():
        if file.metadata.get(key) != value:
            raise UserError(f"{path}: {key} is {file.metadata.get(key)!r:.40}, and {value!r} is needed")
    if "adapter.alora.invocation_tokens" in file.metadata:
        raise UserError(f"{path}: is applied after certain tokens alone (aLoRA), which is not supported")
    alpha = file.metadata.get(ALPHA)
    if not isinstance(alpha, float | np.floating):
        raise UserError(f"{path}: {ALPHA} is missing, or is no number")
    changes: dict[str, LowRank] = {}
    for name in file.tensors:
        theirs, _, part = name.rpartition(".")
        pair = [file.tensors.get(f"{theirs}.lora_{each}") for each in "ab"]
        each = bound.get(theirs)
        if part not in ("lora_a", "lora_b") or each is None or pair[0] is None or pair[1] is None:
            raise UserError(f"{path}: {quoted(name)} is no half of a pair for a matrix of the base model")
        _check_rows(each, path)
        a, b = quant.unpack(pair[0]), quant.pack(quant.unpack(pair[1]), "F32")
        if b.shape[0] != sum(shape[0] for shape in each.place.shapes):
            raise UserError(f"{path}: {quoted(name)} does not fit the base's matrix")
        for ours, rows in zip(each.ours, each.how.load(b, each.place), strict=True):
            changes[ours] = LowRank(a, quant.unpack(rows), float(alpha) / len(a) if alpha else 1.0)
            check(changes[ours], base.tensors.later(ours).shape, f"{path}: {quoted(theirs)}")
    if not changes:
        raise UserError(f"{path}: holds no tensors")
    return changes


def _bound(base: Checkpoint, path: Path) -> tuple[Family, dict[str, Bound]]:
    """The base's family and its weights by GGUF's names."""
    if base.family is None:
        raise UserError(f"{path}: no family describes {base.source}, so GGUF has no names for its weights")
    family = families.get(base.family)
    return family, {each.theirs: each for each in rules.bind(family.gguf, base.config)}


def _check_rows(each: Bound, path: Path) -> None:
    """UserError unless the rows of their matrix are the rows of ours, in whatever order."""
    shapes = each.place.shapes
    theirs = each.how.shape(each.place)
    if each.how is rules.transpose or theirs != (sum(shape[0] for shape in shapes), shapes[0][1]):
        raise UserError(f"{path}: a pair for {quoted(each.theirs)} has no form that llama.cpp reads")
    if each.theirs == "token_embd.weight":
        raise UserError(
            f"{path}: a pair for the embedding table, which may be the head too, is not supported"
        )
