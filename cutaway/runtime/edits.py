"""How the runtime edits a forward pass: what becomes of a value that it shows, token by token.

    x <- factor x + strength v             scale, empty, set, add: one v, or one for each token
    x <- x + strength (x . read) v         along a direction: projections, coordinates that change places
    x, y <- x + strength (y - x), y + strength (x - y)     some units exchanged with others
    x <- x + strength (y - x)              the stream after a layer, moved to the stream before it

Attention weights change so too, head by head, at some or all keys, and may be renormalised to the sum that
they had; what the head gathers is then gathered anew (``runtime/attention.py``).
In float32, in this order; the product x . read is a float64 sum, number after number. The native step's bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

NEVER = 2**31 - 1  # a position after all
Rows = Callable[[np.ndarray], np.ndarray]  # the vectors float32 [t n] of tokens at positions int [t]


class Edit(NamedTuple):
    """A change of a value ``what`` of a layer.

    ``vector`` is float32 [n], or gives one for each token; None: nothing is added. With ``read`` float32 [n]
    it is added along that direction; ``other``: the first of the units that are exchanged with these;
    ``returns``: to the layer's input. ``units`` are those of a token's row that change, from one up to
    another (None: all). ``positions`` are absolute (None: all), and none before ``first`` changes.

    Of attention weights the units are heads, ``keys`` those that change (None: all), and ``vector`` is
    [h s], or gives [t h s], of the keys from the first to the last of them.
    """

    layer: int
    vector: np.ndarray | Rows | None
    strength: float = 1.0
    factor: float = 1.0
    positions: frozenset[int] | None = None
    first: int = 0
    what: str = "out"
    units: tuple[int, int] | None = None
    read: np.ndarray | None = None
    other: int | None = None
    returns: bool = False
    keys: frozenset[int] | None = None
    renormalises: bool = False

    @property
    def span_of_keys(self) -> tuple[int, int]:
        """The range of keys whose attention weights an edit changes."""
        return (0, NEVER) if self.keys is None else (min(self.keys), max(self.keys) + 1)

    @property
    def chosen_keys(self) -> np.ndarray | None:
        """float32, 1 for each of those keys that changes and 0 for others; None: all change."""
        if self.keys is None or len(self.keys) == max(self.keys) + 1 - min(self.keys):
            return None
        return np.isin(np.arange(*self.span_of_keys), list(self.keys)).astype(np.float32)

    @property
    def how(self) -> Literal["move", "along", "exchange", "return"]:
        """The kind of the change, one of four."""
        if self.returns:
            return "return"
        if self.other is not None:
            return "exchange"
        return "move" if self.read is None else "along"

    @property
    def begins(self) -> int:
        """The first position that it may change."""
        return self.first if self.positions is None else max(self.first, min(self.positions, default=NEVER))

    def reached(self, heads: int) -> list[int]:
        """The heads, of so many, whose attention weights it may change."""
        first, last = self.units or (0, heads)
        also = [] if self.other is None else range(self.other, self.other + last - first)
        return [*range(first, last), *also]

    def spans(self, start: int, count: int) -> list[tuple[int, int]]:
        """Which of ``count`` tokens from position ``start`` on it changes, as runs [first, last)."""
        first = max(0, self.first - start)
        if self.positions is None:
            return [(first, count)] if first < count else []
        if len(self.positions) > count:
            return runs(at for at in range(first, count) if start + at in self.positions)
        return runs(at - start for at in self.positions if first <= at - start < count)

    def vectors(self, start: int, first: int, last: int) -> np.ndarray | None:
        """``vector``, of the tokens [first, last) after position ``start`` where each has its own."""
        if not callable(self.vector):
            return self.vector
        return np.ascontiguousarray(self.vector(np.arange(start + first, start + last)), np.float32)

    def applied(self, x: np.ndarray, start: int, came: np.ndarray | None = None) -> np.ndarray:
        """The values [t ...] of tokens from position ``start`` on, changed; ``came``: the layer's input."""
        rows = x.reshape(len(x), -1).copy()
        for first, last in self.spans(start, len(x)):
            here, strength = rows[first:last], np.float32(self.strength)
            if self.returns:
                assert came is not None
                here[:] = _moved(here, came[first:last], strength)
                continue
            units = slice(*(self.units or (0, rows.shape[1])))
            part, added = here[:, units].copy(), self.vectors(start, first, last)
            if self.other is not None:
                other = slice(self.other, self.other + part.shape[1])
                here[:, units] = _moved(part, here[:, other], strength)
                here[:, other] = _moved(here[:, other], part, strength)
                continue
            scale: Any = strength
            if self.read is not None:
                products = np.add.accumulate(part.astype(np.float64) * self.read, axis=1)[:, -1:]
                scale = (np.float64(strength) * products).astype(np.float32)
            if self.factor != 1:
                part = part * np.float32(self.factor) if self.factor else np.zeros_like(part)
            here[:, units] = part if added is None else part + scale * added
        return rows.reshape(x.shape)


def reweighed(edits: Sequence[Edit], weights: np.ndarray, position: int) -> np.ndarray | None:
    """The attention weights [h s] of a token as edits of them leave it, None where none is of this token."""
    own = [edit for edit in edits if edit.spans(position, 1)]
    if not own:
        return None
    weights = weights.copy()
    for edit in own:
        first, last = edit.span_of_keys
        heads, some = slice(*(edit.units or (0, len(weights)))), slice(first, min(last, weights.shape[1]))
        changed = [heads]
        if edit.other is not None:
            changed.append(slice(edit.other, edit.other + heads.stop - heads.start))
        before = [weights[each].copy() for each in changed]
        mask = edit.chosen_keys
        acts = np.ones(some.stop - some.start, bool) if mask is None else mask[: some.stop - some.start] > 0
        if edit.other is not None:
            for own_heads, one, two in zip(changed, before, before[::-1], strict=True):
                new = _moved(one[:, some], two[:, some], np.float32(edit.strength))
                weights[own_heads, some] = np.where(acts, new, one[:, some])
        else:
            part = weights[heads, some]
            new = part * np.float32(edit.factor) if edit.factor else np.zeros_like(part)
            if (added := edit.vectors(position, 0, 1)) is not None:
                new = new + np.float32(edit.strength) * added[0][:, : some.stop - some.start]
            weights[heads, some] = np.where(acts, new, part)
        for each, old in zip(changed, before, strict=True) if edit.renormalises else ():
            weights[each] = _renormalised(weights[each], old)
    return weights


def _renormalised(weights: np.ndarray, old: np.ndarray) -> np.ndarray:
    now, before = (np.add.accumulate(each, axis=1)[:, -1:] for each in (weights, old))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((now == 0) | (now == before), weights, weights * (before / now))


def _moved(x: np.ndarray, to: np.ndarray, strength: np.float32) -> np.ndarray:
    return to if strength == 1 else x + strength * (to - x)


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as runs of neighbours, each from one up to another."""
    found = sorted(set(numbers))
    breaks = [(a, b) for a, b in pairwise(found) if b != a + 1]
    starts, ends = [*found[:1], *(b for _, b in breaks)], [*(a for a, _ in breaks), *found[-1:]]
    return [(first, last + 1) for first, last in zip(starts, ends, strict=True)]
