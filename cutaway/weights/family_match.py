"""Find the family that describes a model: the first whose config reads back as the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cutaway.errors import UserError
from cutaway.layers.config import MoE
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Model
from cutaway.model.config_dict import to_dict
from cutaway.model.kinds import kind_of
from cutaway.position.scaling import Factors, Llama3, LongRoPE, YaRN
from cutaway.weights import family_registry, lacking, rotary
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.family import Family
from cutaway.weights.lacking import Difference


def described(
    checkpoint: Checkpoint, describe: Callable[[Family], tuple[Any, Model]], in_gguf: bool = False
) -> tuple[Family, Any]:
    """The first family whose description reads back as the model; UserError with its own reason."""
    config = checkpoint.config
    candidates = [family for family in _candidates(checkpoint) if family.gguf or not in_gguf]
    if not config.blocks:
        raise UserError("no family describes this model (it has no layers)")
    nameless = f"llama.cpp has no architecture for {checkpoint.family}"
    if not candidates and checkpoint.family and in_gguf:
        raise UserError(nameless)
    if not candidates:
        kinds = " and ".join(sorted({kind_of(block.attention) for block in config.blocks}))
        raise UserError(
            f"GGUF has no name for {kinds} layers"
            if in_gguf
            else f"no family describes this model (its {kinds} layers are Cutaway's own)"
        )
    reason: tuple[Family, Difference | UserError] | None = None
    for family in candidates:
        try:
            entries, back = describe(family)
        except UserError as error:
            reason = reason or (family, error)
            continue
        lost = _difference(_levelled(config), _levelled(back), "config")
        if lost is None:
            return family, entries
        reason = reason or (family, lost)
    assert reason
    if not in_gguf:
        raise UserError(f"no family describes this model ({reason[1]})")
    if checkpoint.family and reason[0].name != checkpoint.family:
        raise UserError(nameless)
    raise UserError(lacking.in_gguf(reason[1], reason[0], config))


def _candidates(checkpoint: Checkpoint) -> list[Family]:
    """All families of such models, the model's own first."""
    first = (checkpoint.family, "llama")
    names = sorted(family_registry.names(), key=lambda name: (name != first[0], name != first[1], name))
    return [family for family in map(family_registry.get, names) if family.covers(checkpoint.config)]


def _difference(one: Any, other: Any, where: str) -> Difference | None:
    """The first difference of two configs; numbers are equal if their float32 is."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one.keys() | other.keys():
            found = _difference(one.get(name), other.get(name), f"{where}.{name}")
            if found:
                return found
        return None
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        each = (_difference(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True)))
        return next((found for found in each if found), None)
    if isinstance(one, float) and isinstance(other, float) and abs(one - other) <= 1e-6 * abs(one):
        return None
    return None if one == other else Difference(where, one, other)


def _levelled(config: Model) -> Any:
    """The config as plain data: Llama 3's scaling as its divisors, LongRoPE's and YaRN's as a magnitude."""

    def levelled(block: Any) -> Any:
        position = block.attention.position
        if position is None or not isinstance(position.scaling, Llama3 | Factors | LongRoPE | YaRN):
            return block
        if isinstance(position.scaling, LongRoPE):
            level = replace(position.scaling, factor=1.0, attention=position.scaling.magnitude)
        elif isinstance(position.scaling, YaRN):
            level = replace(position.scaling, attention=position.scaling.magnitude)
        else:
            level = Factors(tuple(rotary.divisors_of(position, position.scaling).astype(float).tolist()))
        position = replace(position, scaling=level)
        return replace(block, attention=replace(block.attention, position=position))

    return {**to_dict(config), "blocks": [to_dict(levelled(block)) for block in config.blocks]}


def folded(checkpoint: Checkpoint, notes: Counter[str], in_gguf: bool = True) -> Checkpoint:
    """The same function in a config that GGUF, or a folder, can state: what it has no keys for is in the
    weights.
    """
    family = family_registry.get(checkpoint.family) if checkpoint.family else None
    checkpoint = _without_idle_groups(checkpoint) if in_gguf else checkpoint
    fold = family and (family.folded if in_gguf else family.unfolded)
    if fold is None:
        return checkpoint
    config, tensors, what = fold(checkpoint.config, checkpoint.tensors)
    if config == checkpoint.config:
        return checkpoint
    notes[what] += 1
    return replace(checkpoint, config=config, tensors=tensors)


def _without_idle_groups(checkpoint: Checkpoint) -> Checkpoint:
    """The same with one group of experts where all groups are chosen, which llama.cpp does not open."""

    def plain(block: Block) -> Block:
        mlp = block.mlp
        if not isinstance(mlp, MoE) or mlp.router.groups == 1 or mlp.router.top_groups < mlp.router.groups:
            return block
        return replace(block, mlp=replace(mlp, router=replace(mlp.router, groups=1, top_groups=1)))

    config = checkpoint.config
    if not isinstance(config, Decoder):
        return checkpoint
    blocks, heads = tuple(map(plain, config.blocks)), tuple(map(plain, config.mtp))
    return replace(checkpoint, config=replace(config, blocks=blocks, mtp=heads))
