"""One edit of a value inside the step: its units, tokens and vectors checked and laid out for the core."""

import math
from typing import NamedTuple

import numpy as np

from cutaway.errors import UserError
from cutaway.native.library import check
from cutaway.native.structures import Edit, Model

HOWS = ("move", "along", "exchange", "return")  # step.hpp's How
OUT, PATTERN = 2, 27  # step.hpp's What
VALUES = PATTERN  # that a reading can write out: What in step.hpp


class EditOf(NamedTuple):
    """A change of ``units`` of a value (step.hpp's What) of a layer, for the tokens ``first`` to ``last``, as
    step.hpp's How has it. ``vector`` float32 [units], or [tokens units]; ``read`` float32 [units]; ``other``:
    the first of the units that are exchanged with these. Of a pattern units are heads, ``vector`` is [heads
    keys] or [tokens heads keys] of the ``keys``, and ``read`` [keys] is 0 for those that stay.
    """

    what: int
    layer: int
    units: tuple[int, int]
    first: int
    last: int
    vector: np.ndarray | None = None
    strength: float = 1.0
    factor: float = 1.0
    how: str = "move"
    read: np.ndarray | None = None
    other: int = 0
    keys: tuple[int, int] = (0, 2**31 - 1)
    renormalises: bool = False


def structure(model: Model, tokens: int, by: EditOf) -> Edit:
    pattern, (first, last) = by.what == PATTERN, by.units
    size = model.layers[by.layer].heads if pattern else value_size(model, by.what, by.layer)
    if not 0 <= first < last <= size or not 0 <= by.first <= by.last <= tokens:
        raise UserError(f"The edit of layer {by.layer} fits neither {size} units nor the {tokens} tokens.")
    count, stride = last - first, 0
    for name, given in ("vector", by.vector), ("read", by.read):
        if given is not None:
            check(name, given, np.float32)
    row = (count, by.keys[1] - by.keys[0]) if pattern else (count,)
    if by.vector is not None and by.vector.ndim > len(row):
        stride = math.prod(row)
    shape = (by.last - by.first, *row) if stride else row
    if by.vector is not None and by.vector.shape != shape:
        raise UserError(f"The edit of layer {by.layer} has no vector of {count} numbers, one or one a token.")
    if by.how == "along" and (by.vector is None or by.read is None or by.read.shape != (count,)):
        raise UserError(f"The edit of layer {by.layer} needs two vectors of {count} numbers.")
    if pattern and (by.how not in ("move", "exchange") or not 0 <= by.keys[0] < by.keys[1]):
        raise UserError(f"The edit of layer {by.layer} fits no attention weights.")
    if pattern and by.read is not None and by.read.shape != (by.keys[1] - by.keys[0],):
        raise UserError(f"The edit of layer {by.layer} does not say of {by.keys} which keys change.")
    if by.how == "exchange" and not (0 <= by.other <= size - count and abs(by.other - first) >= count):
        raise UserError(f"The edit of layer {by.layer} exchanges {count} units with none of {size}.")
    if by.how == "return" and (by.what != OUT or count != size):
        raise UserError(f"The edit of layer {by.layer} returns to another value than a layer's input.")
    addresses = (None if given is None else given.ctypes.data for given in (by.vector, by.read))
    how = stride, by.strength, by.factor, HOWS.index(by.how)
    where = by.what, by.layer, by.first, by.last, first, last, by.other
    return Edit(*addresses, *how, *where, *by.keys, by.renormalises, 0)


def value_size(model: Model, what: int, layer: int) -> int:
    """Floats of a token's row of a value."""
    of = model.layers[layer] if 0 <= layer < model.layer_count else None
    if of is None or not 0 <= what < VALUES:
        raise UserError(f"There is no value {what} of layer {layer}.")
    mixed, latent = of.out.columns or of.recurrence.out.columns, of.latent
    query = of.heads * (latent.key_size + latent.rope) if latent.size else of.query.rows
    heads = query, of.key.rows, of.key.rows if of.value_of_key else of.value.rows, mixed
    experts = of.mixture.top_k * of.mixture.experts[0].up.rows if of.mixture.experts else 0
    sizes = (
        *[model.width] * 3,
        *heads,
        *[model.width] * 2,
        *heads[:2],
        model.width,
        of.up.rows,
        *[model.width] * 5,
        *[of.mixture.top_k] * 2,
        of.recurrence.heads * of.recurrence.key_size * of.recurrence.value_size,
        mixed,
        of.output_gate.rows,
        latent.size + latent.rope,
        experts,
        of.mixture.shared_gate.rows,
        model.width,
    )
    return sizes[what]
