"""Edits in the runtime's generation: what is added to the residual stream after a layer, or projected out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect import edits
from cutaway.inspect.edits import Add, Project
from cutaway.model.config import Decoder
from cutaway.runtime.values import Edit

OTHERS = 'load with engine="definition" or "auto" for every other edit'


def prepare(config: Decoder, given: edits.Given, length: int) -> tuple[Edit, ...]:
    """The edits as the runtime makes them, in their order, for a prompt of ``length`` tokens.

    Raises UserError for other kinds of edits and for values that do not fit the model.
    """
    return tuple(_prepared(config, one, length) for one in _listed(given))


def _listed(given: Any) -> Iterator[Any]:
    if isinstance(given, Mapping):
        raise UserError(f"the runtime cannot edit activations by a function: {OTHERS}")
    if not isinstance(given, Sequence):
        yield given
        return
    for one in given:
        yield from _listed(one)


def _prepared(config: Decoder, one: edits.Edit, length: int) -> Edit:
    elsewhere = [name for name in ("name", "head", "units") if getattr(one, name, None) is not None]
    if not isinstance(one, Add | Project) or elsewhere or one.layer is None:
        raise UserError(
            "the runtime cannot edit activations but by adding to the residual stream after a layer, or by "
            f"projecting out of it; this is {edits.describe(one)}: {OTHERS}"
        )
    edits.check(config, one, length)
    vector = np.asarray(one.vector, np.float64)
    if isinstance(one, Project):
        vector /= np.linalg.norm(vector)
    positions = None if one.positions is None else frozenset(at % length for at in one.positions)
    step = getattr(one, "from_step", 0)
    first = max(0, length - 2 + step) if step else 0
    return Edit(
        one.layer, vector.astype(np.float32), one.strength, isinstance(one, Project), positions, first
    )
