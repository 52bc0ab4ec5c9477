"""Weight names as one table read both ways: ``Rule(theirs, ours, how)``.

``how`` is a pair: what becomes of their tensor when it is loaded, and of ours when it is saved. Both work on
packed weights and leave them packed, and both are lazy: nothing is copied until a weight is asked for. Every
name, type and shape is checked before that; a name that no rule knows is refused, and so is one that is
missing. Where ``ours`` holds ``{e}``, the number of an expert, and ``theirs`` too, a rule is one for each
expert; where ``theirs`` does not, all experts are in one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import FOREIGN, NO_WEIGHTS, TYPES, Later, Packed
from cutaway.layers.config import MoE
from cutaway.model.block_config import Block
from cutaway.model.config import EncoderDecoder, Model
from cutaway.quantization import formats
from cutaway.weights.named_tensors import Shape, Tensors, absorbed, made, of_absorbed, stacked_heads


@dataclass(frozen=True)
class Place:
    """The place where a rule is applied: shapes of our weights there, the layer's attention, recurrence."""

    shapes: tuple[Shape, ...]
    attention: Any
    beside: Any = None  # the recurrence beside it


@dataclass(frozen=True)
class How:
    """``load``: theirs to ours; ``save``: ours to theirs; ``shape``: the shape of theirs, from ours.

    Types pass through unchanged, unless ``type`` names the type of the result. With ``absorbs`` ours is made
    of theirs, one head after another [heads latent, k], which is kept beside it (``Absorbed``).
    """

    load: Callable[[Packed, Place], Sequence[Packed]]
    save: Callable[[tuple[Packed, ...], Place], Packed]
    shape: Callable[[Place], Shape]
    type: str | None = None
    absorbs: bool = False


@dataclass(frozen=True)
class Rule:
    """One of their names and ours for it, one or several; ``{n}`` is the layer, ``{e}`` the expert.

    ``when`` says of which layers it is the name; ``number``: their number of each of our layers, where they
    count otherwise, None for those that the rule is not for.
    """

    theirs: str
    ours: str | tuple[str, ...]
    how: How
    when: Callable[[Block], bool] | None = None
    number: Callable[[Any], Sequence[int | None]] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Ours, one or several."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True)
class Bound:
    """A rule at one place of one model."""

    theirs: str
    ours: tuple[str, ...]
    how: How
    place: Place


class Nameless(UserError):
    """A family has no name for this weight of a model."""

    def __init__(self, weight: str) -> None:
        super().__init__(f"this family has no name for the weight {quoted(weight)}")
        self.weight = weight


def bind(rules: Sequence[Rule], config: Model) -> list[Bound]:
    """The rules that apply to this model, layer by layer; UserError if one of its weights has no name."""
    shapes = config.weights()
    bound: list[Bound] = []
    for rule in rules:
        layers = enumerate(_blocks(rule, config)) if "{n}" in rule.theirs else [(0, None)]
        of_layers = "{n}" in rule.theirs
        numbers = range(len(config.blocks)) if rule.number is None or not of_layers else rule.number(config)
        for n, block in layers:
            if rule.when is not None and (block is None or not rule.when(block)):
                continue
            number = numbers[n] if block else 0
            if number is None:
                continue
            for theirs, ours in _names(rule, n, number, _experts(block)):
                if all(name in shapes for name in ours):
                    beside = block.beside.mixer if block and block.beside else None
                    inner = tuple(shapes[name] for name in ours)
                    place = Place(inner, block.attention if block else None, beside)
                    bound.append(Bound(theirs, ours, rule.how, place))
    nameless = shapes.keys() - {name for each in bound for name in each.ours}
    if nameless:
        raise Nameless(min(nameless))
    return bound


def _blocks(rule: Rule, config: Model) -> tuple[Block, ...]:
    """The layers that a rule numbers: of an encoder-decoder those of the half that it names, or mtp's."""
    ours = rule.names[0]
    if ours.startswith("mtp."):
        return getattr(config, "mtp", ())
    if not isinstance(config, EncoderDecoder):
        return config.blocks
    return (config.encoder if ours.startswith("encoder.") else config.decoder).blocks


def _experts(block: Block | None) -> int:
    """How many experts a layer has; 0 for a dense one, and for what is no layer."""
    return block.mlp.experts if block is not None and isinstance(block.mlp, MoE) else 0


def _names(rule: Rule, n: int, number: int, experts: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Their name and ours in our layer n, of their ``number``, once or for each expert."""
    theirs = rule.theirs.replace("{n}", str(number))
    names = rule.names
    ours = tuple(name.replace("{n}", str(n)) for name in names)
    if not any("{e}" in name for name in ours):
        yield theirs, ours
        return
    each = [tuple(name.replace("{e}", str(e)) for name in ours) for e in range(experts)]
    if "{e}" in theirs:
        yield from ((theirs.replace("{e}", str(e)), one) for e, one in enumerate(each))
    elif each:
        yield theirs, tuple(name for one in each for name in one)


def load(
    rules: Sequence[Rule],
    config: Model,
    theirs: Mapping[str, Packed],
    ignored: Sequence[str] = (),
    where: object = "the file",
    zeros: Sequence[str] = (),
) -> Tensors:
    """Our weights out of theirs; UserError for a wrong or missing name, type or shape.

    ``ignored`` are patterns of names that carry nothing (buffers that are computed anyway), where
    ``{layers}`` stands for the number of layers (of a layer after the last, that predicts further tokens).
    ``zeros``: names that may be missing.
    """
    if len(config.blocks) > len(theirs):
        raise UserError(
            f"{where}: the config says {len(config.blocks)} layers, but there are {len(theirs)} weights"
        )
    experts, matrices = sum(map(_experts, config.blocks)), sum(map(_matrices, theirs.values()))
    if experts > matrices:
        raise UserError(f"{where}: the config says {experts} experts, but there are only {matrices} matrices")
    bound = bind(rules, config)
    known = {each.theirs for each in bound}
    skipped = [pattern.replace("{layers}", str(len(config.blocks))) for pattern in ignored]
    for name in theirs:
        if name not in known and not any(fnmatchcase(name, pattern) for pattern in skipped):
            raise UserError(f"{where}: the weight {quoted(name)} has no place in this model")
    entries: dict[str, Packed | Later] = {}
    for each in bound:
        packed = theirs.get(each.theirs)
        if packed is None and each.theirs in zeros:
            packed = formats.pack(np.zeros(each.how.shape(each.place), np.float32), "F32")
        if packed is None:
            raise UserError(f"{where}: the weight {quoted(each.theirs)} is missing")
        _check(each, packed, where)
        for i, (name, shape) in enumerate(zip(each.ours, each.place.shapes, strict=True)):
            if each.how.absorbs:
                entries[name] = of_absorbed(stacked_heads(packed), each.place.attention.heads)
            else:
                entries[name] = Later(each.how.type or packed.type, shape, _loading(each, packed, i))
    return Tensors({name: entries[name] for name in config.weights()})


def _matrices(packed: Packed) -> int:
    """How many matrices a tensor [... rows columns] stacks; 0 for a vector."""
    return math.prod(packed.shape[:-2]) if len(packed.shape) > 1 else 0


def _check(each: Bound, packed: Packed, where: object) -> None:
    """UserError for a tensor of another shape than the config's, or of a type that holds no weights."""
    expected = each.how.shape(each.place)
    if packed.shape != expected:
        raise UserError(
            f"{where}: the weight {quoted(each.theirs)} has the shape {packed.shape}, "
            f"where the config asks for {expected}"
        )
    if packed.type in FOREIGN or packed.type not in TYPES or packed.type in NO_WEIGHTS:
        raise UserError(
            f"{where}: the weight {quoted(each.theirs)} is stored as {packed.type}, "
            "which is not read as weights"
        )


def _loading(each: Bound, packed: Packed, i: int) -> Callable[[], Packed]:
    return lambda: each.how.load(packed, each.place)[i]


def save(rules: Sequence[Rule], config: Model, ours: Tensors) -> Tensors:
    """Their weights out of ours, under their names and in their order. UserError for one without a name."""
    entries: dict[str, Packed | Later] = {}
    for each in bind(rules, config):
        first = ours.later(each.ours[0])
        if each.how.absorbs:
            first = absorbed(ours, each.ours[0], each.place.attention.heads)
        shape = each.how.shape(each.place)
        entries[each.theirs] = Later(each.how.type or first.type, shape, _saving(each, ours))
    return Tensors(entries)


def _saving(each: Bound, ours: Tensors) -> Callable[[], Packed]:
    if each.how.absorbs:
        heads = each.place.attention.heads
        return lambda: each.how.save((made(absorbed(ours, each.ours[0], heads)),), each.place)
    return lambda: each.how.save(tuple(ours[name] for name in each.ours), each.place)


def how_of(rules: Sequence[Rule], changes: Mapping[str, How]) -> tuple[Rule, ...]:
    """The rules, with another way for those of ours that hold one of these words."""

    def way(rule: Rule) -> How:
        return next((how for word, how in changes.items() if word in rule.ours), rule.how)

    return tuple(replace(rule, how=way(rule)) for rule in rules)
