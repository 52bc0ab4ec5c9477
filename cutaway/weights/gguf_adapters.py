"""Adapters in llama.cpp's form: a GGUF file beside the base's, pairs under the base's own names of tensors.

    blk.0.attn_q.weight.lora_a [r in]      blk.0.attn_q.weight.lora_b [out r]
    y = W x + s B (A x)                    s = alpha / r, or 1 where adapter.lora.alpha is 0

Written with the scale in B and alpha 0, since one alpha cannot state ranks and scales that differ. The rows
of B are in the base file's order, which for llama's queries and keys is not Hugging Face's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cutaway import gguf
from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed
from cutaway.quantization import formats
from cutaway.weights import family_registry, layout, rules
from cutaway.weights.changes import Adapter, LowRank, check
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.family import Family
from cutaway.weights.layout import Matrix
from cutaway.weights.rules import Bound

ALPHA = "adapter.lora.alpha"
# Matrices of ours that llama.cpp multiplies past its adapters, by architecture: found by a pair of each.
_LATENT = (".attention.down.", ".attention.query", ".attention.index_")
IGNORED = {
    "deepseek2": (*_LATENT, ".head."),
    "deepseek32": (*_LATENT, ".head."),
    "kimi-linear": (".attention.", ".head."),
    "minicpm3": (*_LATENT, ".attention.key_up.", ".attention.value_up."),
    "gemma4": (".per_layer.",),
}


def write_gguf_adapter(path: Path, adapter: Adapter, base: Checkpoint, force: bool = False) -> None:
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
    name = family.gguf_name_of(base.config)
    _check_folded(family, base, adapter, path)
    tensors: dict[str, Packed] = {}
    written = 0
    for theirs, each in bound.items():
        found: list[Any] = [adapter.get(ours) for ours in each.ours]
        if not any(found):
            continue
        _check_applied([ours for ours in each.ours if ours in adapter], name, path)
        matrix = _matrix(each, path)
        a, b = layout.joined_pair(found, matrix.orders, (matrix.outputs, matrix.inputs))
        tensors[f"{theirs}.lora_a"] = formats.pack(a, "F32")
        tensors[f"{theirs}.lora_b"] = formats.pack(b, "F32")
        written += sum(one is not None for one in found)
    if written < len(adapter):
        raise UserError(f"{path}: GGUF has no matrices for {len(adapter) - written} of the adapter's changes")
    metadata = {
        "general.type": "adapter",
        "general.architecture": name,
        "adapter.type": "lora",
        ALPHA: np.float32(0),
    }
    gguf.write(path, metadata, tensors, force=force)


def read_gguf_adapter(path: Path, base: Checkpoint) -> Adapter:
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
        matrix = _matrix(each, path)
        a, b = formats.unpack(pair[0]), formats.unpack(pair[1])
        change = LowRank(a, b, float(alpha) / len(a) if alpha else 1.0)
        check(change, (matrix.outputs, matrix.inputs), f"{path}: {quoted(theirs)}")
        for ours, order in zip(each.ours, matrix.orders, strict=True):
            changes[ours] = LowRank(a[:, order.columns], b[order.rows], change.scale)
    if not changes:
        raise UserError(f"{path}: holds no tensors")
    _check_folded(family, base, changes, path)
    return changes


def _bound(base: Checkpoint, path: Path) -> tuple[Family, dict[str, Bound]]:
    """The base's family and its weights by GGUF's names."""
    if base.family is None:
        raise UserError(f"{path}: no family describes {base.source}, so GGUF has no names for its weights")
    family = family_registry.get(base.family)
    return family, {each.theirs: each for each in rules.bind(family.gguf, base.config)}


def _check_applied(changed: Sequence[str], architecture: str, path: Path) -> None:
    """UserError for a matrix of which llama.cpp would leave the pair out."""
    for ours in changed:
        if ours == "position.weight" or any(word in f".{ours}" for word in IGNORED.get(architecture, ())):
            raise UserError(
                f"{path}: llama.cpp multiplies by {ours} past its adapters, so it would leave the pair out: "
                "write base and adapter as one model (`cutaway merge`)"
            )


def _check_folded(family: Family, base: Checkpoint, adapter: Adapter, path: Path) -> None:
    """UserError where the base's GGUF holds one of the changed matrices multiplied, so that a pair is not."""
    if family.folded is None:
        return
    config, tensors, what = family.folded(base.config, base.tensors)
    if config != base.config:
        for name in adapter:
            if tensors.later(name) is not base.tensors.later(name):
                raise UserError(
                    f"{path}: {what}, and so is {name}, but not a pair beside it: write base and adapter as "
                    "one model (`cutaway merge`)"
                )


def _matrix(each: Bound, path: Path) -> Matrix:
    """The order of our matrices in theirs. UserError where llama.cpp multiplies it otherwise."""
    if each.theirs == "token_embd.weight":
        raise UserError(
            f"{path}: a pair for the embedding table, which may be the head too, is not supported"
        )
    try:
        matrix = layout.matrix(each)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if matrix.transposed or matrix.entries is not None:
        raise UserError(f"{path}: a pair for {quoted(each.theirs)} has no form that llama.cpp reads")
    return matrix
