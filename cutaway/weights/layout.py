"""The order of rows and columns: where each one of a file's matrix is in our matrices, by a family's rules.

An adapter's low-rank change of their matrix fits ours once its rows and columns are in our order. No table
states that order: each rule is applied to a matrix of row (or column) numbers, and the result shows where
each went.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed
from cutaway.model.config import Model
from cutaway.weights import rules, tensor_maps
from cutaway.weights.changes import LowRank
from cutaway.weights.family import Family
from cutaway.weights.rules import Bound, How, Place, Rule

EXPERT = ".{e}."


class Order(NamedTuple):
    """A matrix of ours by the outputs and inputs of one of theirs: ours[i, j] = theirs(rows[i], columns[j]).

    ``transposed``: theirs is stored as [in out]. ``entry``: of a stack of theirs, which matrix.
    """

    rows: np.ndarray
    columns: np.ndarray
    transposed: bool
    entry: int | None = None


class Matrix(NamedTuple):
    """A matrix of theirs as a linear map, and each of ours in it; ``entries``: how many, of a stack."""

    outputs: int
    inputs: int
    orders: tuple[Order, ...]
    entries: int | None = None

    @property
    def transposed(self) -> bool:
        """Whether it is stored as [in out]."""
        return self.orders[0].transposed


def joined_pair(
    found: Sequence[LowRank | None], orders: Sequence[Order], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of matrices that are one of theirs as one pair of the sum of their ranks, the scale in B."""
    rank = sum(len(one.a) for one in found if one is not None)
    a, b = np.zeros((rank, shape[1]), np.float32), np.zeros((shape[0], rank), np.float32)
    at = 0
    for one, order in zip(found, orders, strict=True):
        if one is not None:
            rows = slice(at, at + len(one.a))
            a[rows, order.columns] = one.a
            b[order.rows, rows] = np.float32(one.scale) * one.b
            at += len(one.a)
    return a, b


def matrix(bound: Bound) -> Matrix:
    """The order of our matrices in theirs. UserError where a rule does more than reorder."""
    found = _matrix(bound.how, bound.place)
    if found is None:
        raise UserError(
            f"{quoted(bound.theirs)} is stored in a form that no adapter of a matrix reaches: its rows and "
            "columns are not those of one linear map"
        )
    return found


@lru_cache(maxsize=1024)
def _matrix(how: How, place: Place) -> Matrix | None:
    shape, shapes = how.shape(place), place.shapes
    if any(len(one) != 2 for one in shapes):
        return None
    if len(shape) == 3:
        per = len(shapes) // shape[0]
        if not per or per * shape[0] != len(shapes):
            return None
        one = _orders(how, replace(place, shapes=shapes[:per]), (1, *shape[1:]))
        if one is None:
            return None
        orders = tuple(order._replace(entry=n) for n in range(shape[0]) for order in one)
        return _whole(orders, shape[1:], shape[0])
    orders = _orders(how, place, shape) if len(shape) == 2 else None
    return None if orders is None else _whole(orders, shape)


def _whole(orders: tuple[Order, ...], shape: tuple[int, ...], entries: int | None = None) -> Matrix | None:
    outputs, inputs = shape[::-1] if orders[0].transposed else shape
    alike = all(one.transposed is orders[0].transposed and len(one.columns) == inputs for one in orders)
    return Matrix(outputs, inputs, orders, entries) if alike else None


def _orders(how: How, place: Place, shape: tuple[int, ...]) -> tuple[Order, ...] | None:
    if how is tensor_maps.same:
        return (Order(np.arange(shape[0]), np.arange(shape[1]), False),)
    columns = shape[-1]
    places = np.arange(math.prod(shape), dtype="<u4").reshape(shape)
    packed = Packed("F32", shape, places.view(np.uint8).reshape(*shape[:-1], -1))
    parts = how.load(packed, place)
    found = [parts[n] for n in range(len(place.shapes))]
    if how.type is not None or any(part.type != "F32" for part in found):
        return None
    orders = [_order(part.data.view("<u4").reshape(part.shape), columns) for part in found]
    return None if None in orders else tuple(orders)  # type: ignore[arg-type]


def _order(places: np.ndarray, columns: int) -> Order | None:
    """Which row and column of theirs each row and column of ours is; None where that is no reordering."""
    for transposed, first in ((False, places), (True, places.T)):
        rows, cols = first[:, 0] // columns, first[0] % columns
        if np.array_equal(first, rows[:, None] * np.uint32(columns) + cols[None]):
            whole = (cols, rows) if transposed else (rows, cols)
            return Order(whole[0].astype(np.int64), whole[1].astype(np.int64), transposed)
    return None


def modules(family: Family, config: Model) -> list[Bound]:
    """The weights of a model by the names of transformers' parameters, where experts are stacked.

    A folder's names are those of older versions, which transformers renames as it opens it.
    """
    kept: list[Rule] = []
    stacks: dict[tuple[str, object], list[Rule]] = {}  # of the layers, and of heads after the last
    for rule in family.hf:
        container, expert, leaf = rule.theirs.partition(EXPERT)
        if not expert:
            kept.append(rule)
        elif leaf.endswith(".weight") and rule.how is tensor_maps.same:
            stacks.setdefault((container, rule.number), []).append(rule)
        else:
            kept.append(rule)
    for (container, _), found in stacks.items():
        kept += _stacked(container, found)
    own = [entry for entry in family.modules if isinstance(entry, Rule)]
    apart = {name for rule in own for name in rule.names}
    for rule in kept:
        if apart.isdisjoint(rule.names):
            name = rule.theirs
            for entry in family.modules:
                name = name if isinstance(entry, Rule) else name.replace(*entry)
            own.append(replace(rule, theirs=name))
    return rules.bind(own, config)


def _stacked(container: str, found: Sequence[Rule]) -> list[Rule]:
    """The rules of a layer's experts, one matrix an expert, as rules of parameters that stack them."""
    by_part = {str(rule.ours).split(".")[-2]: rule for rule in found}
    if "gate" in by_part:
        pair = (str(by_part["gate"].ours), str(by_part["up"].ours))
        first = replace(by_part["gate"], theirs=f"{container}.gate_up_proj", ours=pair)
        made = [replace(first, how=tensor_maps.each(tensor_maps.split, 2))]
    else:
        made = [replace(by_part["up"], theirs=f"{container}.up_proj", how=tensor_maps.stack)]
    return [*made, replace(by_part["down"], theirs=f"{container}.down_proj", how=tensor_maps.stack)]
