"""Edits in the runtime's own step: each of the package's edits as changes of the values that the step passes.

A change is factor x + strength v, or a projection, of some units of a value of a layer (runtime/values.py).
So ablations to zero, scales, additions and projections run at the packed model's speed, beside other texts.
What takes values of another text (a patch, an ablation to a mean) and functions are the definition's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect import edits, names
from cutaway.inspect.edits import Ablate, Add, Project, Scale
from cutaway.layers.config import MoE
from cutaway.model.config import Decoder
from cutaway.runtime.values import Edit, Value, every, named

OTHERS = 'load with engine="definition" or "auto" for it'


def prepare(config: Decoder, given: edits.Given, length: int) -> tuple[Edit, ...]:
    """The edits as the runtime makes them, in their order, for a prompt of ``length`` tokens.

    Raises UserError for other kinds of edits and for values that do not fit the model.
    """
    return tuple(made for one in _listed(given) for made in _prepared(config, one, length))


def _listed(given: Any) -> Iterator[Any]:
    if isinstance(given, Mapping):
        raise UserError(f"the runtime cannot edit activations by a function: {OTHERS}")
    if not isinstance(given, Sequence):
        yield given
        return
    for one in given:
        yield from _listed(one)


def _prepared(config: Decoder, one: edits.Edit, length: int) -> Iterator[Edit]:
    edits.check(config, one, length)
    if not isinstance(one, Ablate | Scale | Add | Project) or getattr(one, "to", "zero") != "zero":
        raise _refusal(one, "takes values of another text")
    positions = None if one.positions is None else frozenset(at % length for at in one.positions)
    first = max(0, length - 2 + one.from_step) if one.from_step else 0
    if isinstance(one, Ablate) and one.part == "layer" and one.name is None:
        for what in _halves(config, one):
            yield Edit(one.layer or 0, None, 1.0, False, positions, first, what, None, 0.0)
        return
    for value in _values(config, one):
        what = value.name if value.name == "embed" else value.name.split(".", 2)[2]
        made = partial(Edit, value.layer, positions=positions, first=first, what=what)
        yield from _changes(made, one, value)


def _refusal(one: edits.Edit, why: str) -> UserError:
    return UserError(f"the runtime cannot edit this: {edits.describe(one)}, which {why}; {OTHERS}")


def _halves(config: Decoder, one: Ablate) -> list[str]:
    """The values that both halves of a layer add, so that without them it passes its input on."""
    block = config.blocks[one.layer or 0]
    if one.strength != 1 or block.beside or block.scaled or config.per_layer:
        raise _refusal(one, "is more than leaving out what its halves add")
    mixed = "attention_post_norm" if "attention_post_norm" in block.norms else "attention.out"
    if block.mlp is None:
        return [mixed]
    last = "mlp.out" if isinstance(block.mlp, MoE) else "mlp.down"
    return [mixed, "mlp_post_norm" if "mlp_post_norm" in block.norms else last]


def _values(config: Decoder, one: edits.Edit) -> tuple[Value, ...]:
    """The values that an edit changes, in the order of the step."""
    if one.name is None:
        return named(config, (f"blocks.{one.layer}.{_part(config, one)}",))
    theirs = names.aliases(every(config), len(config.blocks))
    known = [theirs[name] for name in names.matching(theirs, one.name)] or [one.name]
    found = named(config, tuple(known))
    if any(value.what < 0 for value in found):
        raise _refusal(one, "are attention weights")
    return found


def _part(config: Decoder, one: Any) -> str:
    if isinstance(one, Add | Project):
        return "out"
    if one.part == "mlp":
        return "mlp.out" if isinstance(config.blocks[one.layer].mlp, MoE) else "mlp.down"
    return {"head": "attention.z", "attention": "attention.out"}[one.part]


def _changes(made: Any, one: Any, value: Value) -> Iterator[Edit]:
    """The changes of one value: of each head, and of each run of units side by side."""
    heads, size = (value.shape[0], value.shape[1]) if len(value.shape) == 2 else (1, value.shape[0])
    if one.head is not None and (len(value.shape) == 1 or not 0 <= one.head < heads):
        raise UserError(f"{value.name} has no head {one.head}")
    if one.units is not None and not all(0 <= unit < size for unit in one.units):
        raise UserError(f"{value.name} has no unit {max(one.units)}: its units are 0 to {size - 1}")
    vector = None
    if isinstance(one, Add | Project):
        vector = np.asarray(one.vector, np.float64)
        if len(vector) != size:
            raise UserError(f"the vector has {len(vector)} numbers, {value.name} {size}")
    if isinstance(one, Project):
        if one.units is not None or value.name.endswith("mlp.hidden"):
            raise _refusal(one, "projects within some units, or among neurons")
        vector = np.asarray(one.vector, np.float64)
        vector /= np.linalg.norm(vector)
    for head in range(heads) if one.head is None else (one.head,):
        for first, last in _runs(one.units, size):
            units = (head * size + first, head * size + last)
            if vector is not None:
                part = vector[first:last].astype(np.float32)
                yield made(vector=part, strength=one.strength, projects=isinstance(one, Project), units=units)
            else:
                factor = one.strength if isinstance(one, Scale) else 1 - one.strength
                yield made(vector=None, units=units, factor=factor)


def _runs(units: Sequence[int] | None, size: int) -> list[tuple[int, int]]:
    """Units as runs of neighbours, each from one up to another."""
    if units is None:
        return [(0, size)]
    found = sorted(set(units))
    starts = [found[0], *(after for before, after in pairwise(found) if after != before + 1)] if found else []
    ends = [before + 1 for before, after in pairwise(found) if after != before + 1] + found[-1:]
    ends[-1:] = [end + 1 for end in ends[-1:]]
    return list(zip(starts, ends, strict=True))
