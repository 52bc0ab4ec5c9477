"""Edits in the runtime's own step: each of the package's edits as changes of the values that the step passes.

A change (runtime/edits.py) is of some units of a value of a layer, for some tokens. So every kind of edit
runs at the packed model's speed, beside other texts. What an edit takes of other texts is read once, of all
texts in the same batch. Functions by name are the PyTorch model's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect import edits, names
from cutaway.inspect.edits import Ablate, Add, Noise, Patch, Project, Scale, Swap
from cutaway.layers.config import MoE
from cutaway.model.config import Decoder
from cutaway.runtime import values
from cutaway.runtime.edits import Edit, runs
from cutaway.runtime.values import LOOKS, PATTERN, Value, editable, every, moved_alone, named

OTHERS = 'load with engine="pytorch" or "auto" for it'


class UnsupportedEditError(UserError):
    """An edit that the runtime does not make, and the PyTorch model may."""


def prepare(engine: Any, given: edits.Given, length: int, donors: Donors | None = None) -> tuple[Edit, ...]:
    """The edits as the runtime makes them, in their order, for a prompt of ``length`` tokens.

    Raises UserError for functions and for edits that do not fit the model.
    """
    return prepare_each(engine, [given], [length], donors)[0]


def prepare_each(
    engine: Any, given: Sequence[edits.Given], lengths: Sequence[int], donors: Donors | None = None
) -> list[tuple[Edit, ...]]:
    """Each text's edits; what they take of other texts is read together, or is in ``donors`` already."""
    for one, length in zip(given, lengths, strict=True):
        check(engine.config, one, length)
    own = donors or Donors(engine)
    listed: list[list[Any]] = [list(edits.listed(one)) for one in given]
    own.read((ids, value.name) for one in listed for edit in one for ids, value in takes(own.config, edit))
    return [
        tuple(made for edit in one for made in _prepared(own, edit, length))
        for one, length in zip(listed, lengths, strict=True)
    ]


def check(config: Decoder, given: edits.Given, length: int) -> None:
    """UserError for functions and for edits that do not fit the model; nothing is read."""
    for one in edits.listed(given):
        if isinstance(one, Mapping):
            raise UnsupportedEditError(f"the runtime cannot edit activations by a function: {OTHERS}")
        if isinstance(one, Add) and one.relative:
            raise UnsupportedEditError(
                f"the runtime adds a vector as it is, not times the norm of each activation; {OTHERS}"
            )
        if one.name is not None:
            _values(config, one)  # what is not shown is refused before what does not fit
        edits.check(config, one, length)
        for value in _values(config, one):
            _check_value(one, value)


def unsupported_reason(config: Decoder, given: edits.Given) -> str | None:
    """Why the runtime does not make these edits; None if it does, or if they fit no model."""
    try:
        check(config, given, config.context)
    except UnsupportedEditError as error:
        return str(error).removesuffix(f"; {OTHERS}").removesuffix(f": {OTHERS}")
    except UserError:  # edits that do not fit: `prepare` says so, with the prompt at hand
        return None
    return None


class Donors:
    """Activations of other texts that edits use, from a runtime engine: read once for all edits."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.config = engine, engine.config
        self._read: dict[tuple[Sequence[int], str], np.ndarray] = {}

    def read(self, wanted: Iterable[tuple[Sequence[int], str]]) -> None:
        """Reads what is not there of texts and names: texts of which the same is wanted in one batch."""
        missing: dict[Sequence[int], dict[str, None]] = {}
        for ids, name in wanted:
            if (ids, name) not in self._read:
                missing.setdefault(ids, {})[name] = None
        together: dict[tuple[str, ...], list[Sequence[int]]] = {}
        for ids, some in missing.items():
            together.setdefault(tuple(some), []).append(ids)
        for some, texts in together.items():
            ends = np.cumsum([len(ids) for ids in texts])[:-1]
            for name, rows in values.of_texts(self.engine, texts, some).items():
                if isinstance(rows, list):
                    rows = _square(rows, max(map(len, texts)))
                for ids, own in zip(texts, np.split(rows, ends), strict=True):
                    own = own[..., : len(ids)] if name.endswith(PATTERN) else own
                    self._read[ids, name] = own.reshape(len(ids), -1)

    def add(self, ids: Sequence[int], name: str, rows: Sequence[np.ndarray]) -> None:
        """Takes a value of each token of a text, which was read elsewhere."""
        whole = _square(rows, len(ids)) if name.endswith(PATTERN) else np.stack(rows)
        self._read[ids, name] = whole.reshape(len(ids), -1)

    def rows(self, ids: Sequence[int], name: str) -> np.ndarray:
        """float32 [t n]: the value of each token of a text that was read."""
        return self._read[ids, name]


def _square(rows: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Attention weights [h s] of tokens as [t h size], zeros where a text is not that long."""
    return np.stack([np.pad(row, ((0, 0), (0, size - row.shape[1]))) for row in rows])


def takes(config: Decoder, one: Any) -> Iterator[tuple[Sequence[int], Value]]:
    """The texts and values of which an edit takes numbers."""
    texts = [one.ids] if isinstance(one, Patch) else getattr(one, "reference", ())
    for value in _values(config, one) if texts else ():
        yield from ((ids, value) for ids in texts)


def _prepared(donors: Donors, one: edits.Edit, length: int) -> Iterator[Edit]:
    positions = None if one.positions is None else frozenset(at % length for at in one.positions)
    if isinstance(one, Patch) and positions is None:
        positions = frozenset(range(len(one.ids)))
    first = max(0, length - 2 + one.from_step) if one.from_step else 0
    for value in _values(donors.config, one):
        what = value.name if value.name == "embed" else value.name.split(".", 2)[2]
        made = partial(Edit, value.layer, positions=positions, first=first, what=what)
        yield from _changes(made, one, value, donors)


def _values(config: Decoder, one: edits.Edit) -> tuple[Value, ...]:
    """The values that an edit changes, in the order of the step."""
    if one.name is None:
        return named(config, (f"blocks.{one.layer}.{_part(config, one)}",))
    theirs = names.aliases(every(config), len(config.blocks))
    known = [theirs[name] for name in names.matching(theirs, one.name)] or [one.name]
    try:
        found = named(config, tuple(known))
    except UserError as error:
        raise UnsupportedEditError(str(error)) from None
    for value in found:
        if not editable(value.name):
            raise UnsupportedEditError(f"the runtime shows {value.name} and does not edit it; {OTHERS}")
        if value.what == LOOKS[PATTERN] and not _reweighs(one):
            what = (
                f"{edits.describe(one)}, attention weights that it scales, zeroes, patches, adds to and swaps"
            )
            raise UnsupportedEditError(f"the runtime cannot edit this: {what}; {OTHERS}")
        moves = isinstance(one, Scale | Ablate | Patch | Add | Noise)
        if not moves and moved_alone(config, value.layer, value.name.split(".", 2)[-1]):
            what = f"{edits.describe(one)}, which a recurrence has some heads at a time"
            raise UnsupportedEditError(f"the runtime cannot edit this: {what}; {OTHERS}")
    return found


def _reweighs(one: edits.Edit) -> bool:
    """Whether the runtime makes this edit of attention weights."""
    zeroes = isinstance(one, Ablate) and one.to == "zero"
    swaps = isinstance(one, Swap) and one.other is not None
    return one.units is None and (zeroes or swaps or isinstance(one, Scale | Patch | Add))


def _part(config: Decoder, one: Any) -> str:
    if isinstance(one, Add | Project):
        return "out"
    if one.part == "mlp":
        return "mlp.out" if isinstance(config.blocks[one.layer].mlp, MoE) else "mlp.down"
    return {"head": "attention.z", "attention": "attention.out"}.get(one.part, "out")


def _check_value(one: Any, value: Value) -> None:
    """Raises UserError for a head, units or a vector that a value does not have."""
    heads, size = _shape(value)
    whole = len(value.shape) == 1 and value.what >= 0
    for head in (one.head, one.other if isinstance(one, Swap) else None):
        if head is not None and (whole or not 0 <= head < heads):
            raise UserError(f"{value.name} has no head {head}")
    units = [*(one.units or ()), *((one.others or ()) if isinstance(one, Swap) else ())]
    if not all(-size <= unit < size for unit in units):
        raise UserError(f"{value.name} has no unit {max(units)}: its units are 0 to {size - 1}")
    vectors = [one.vector] if isinstance(one, Add | Project) else getattr(one, "vectors", None) or ()
    for vector in vectors:
        if len(vector) != size and value.what != LOOKS[PATTERN]:
            raise UserError(f"the vector has {len(vector)} numbers, {value.name} {size}")


def _shape(value: Value) -> tuple[int, int]:
    """Heads and units of each: one head where a value has none; of attention weights heads alone."""
    if value.what == LOOKS[PATTERN]:
        return value.shape[0], 0
    return (value.shape[0], value.shape[1]) if len(value.shape) == 2 else (1, value.shape[0])


def _changes(made: Any, one: Any, value: Value, donors: Donors) -> Iterator[Edit]:
    """The changes of one value: of each head, and of each run of units side by side."""
    if isinstance(one, Ablate) and one.part == "layer" and one.name is None:
        yield made(vector=None, strength=one.strength, returns=True)
        return
    heads, size = _shape(value)
    if value.what == LOOKS[PATTERN]:
        yield _reweighed(made, one, value, donors)
        return
    for head in range(heads) if one.head is None else (one.head,):
        at = head * size
        if isinstance(one, Swap) and one.vectors is None:
            yield from _exchanged(made, one, at, size)
        elif isinstance(one, Project | Swap):
            yield from _along(made, one, (at, at + size))
        else:
            for first, last in _runs(one, size):
                yield _moved(made, one, value, (at + first, at + last), donors)


def _reweighed(made: Any, one: Any, value: Value, donors: Donors) -> Edit:
    """Attention weights of a head or of all, scaled, moved towards those of another text, or exchanged."""
    heads = (0, value.shape[0]) if one.head is None else (one.head, one.head + 1)
    keys = None if one.keys is None else frozenset(one.keys)
    made = partial(made, units=heads, keys=keys, renormalises=one.renormalise)
    if isinstance(one, Add):
        keys = frozenset(range(len(one.vector))) if keys is None else keys & {*range(len(one.vector))}
        row = np.asarray(one.vector, np.float32)[min(keys, default=0) : max(keys, default=-1) + 1]
        vector = np.tile(row, (heads[1] - heads[0], 1))
        return made(vector=vector, strength=one.strength, keys=keys)
    if isinstance(one, Swap):
        return made(vector=None, strength=one.strength, other=one.other)
    if isinstance(one, Patch):
        rows = donors.rows(one.ids, value.name).reshape(len(one.ids), -1, len(one.ids))[:, slice(*heads)]
        last = len(one.ids) if keys is None else max(keys) + 1
        rows = np.pad(rows, ((0, 0), (0, 0), (0, max(0, last - len(one.ids)))))
        keys = frozenset(range(last)) if keys is None else keys
        rows = rows[..., min(keys) : last]
        return made(vector=rows.__getitem__, strength=one.strength, factor=1 - one.strength, keys=keys)
    return made(vector=None, factor=one.strength if isinstance(one, Scale) else 1 - one.strength)


def _runs(one: edits.Edit, size: int) -> list[tuple[int, int]]:
    """The units of an edit, of so many, as runs of neighbours."""
    return [(0, size)] if one.units is None else runs(unit % size for unit in one.units)


def _exchanged(made: Any, one: Swap, at: int, size: int) -> Iterator[Edit]:
    """Units of the head that begins at ``at`` for those of the other head, or for others of this one."""
    places = [
        (unit, unit + 1, at + other) for unit, other in zip(one.units or (), one.others or (), strict=False)
    ]
    if one.other is not None:
        places = [(first, last, one.other * size + first) for first, last in _runs(one, size)]
    for first, last, other in places:
        yield made(vector=None, strength=one.strength, units=(at + first, at + last), other=other)


def _along(made: Any, one: Project | Swap, units: tuple[int, int]) -> Iterator[Edit]:
    """A direction that is projected out, or two whose coordinates are exchanged; of ``units`` alone what
    changes is added to those.
    """
    if isinstance(one, Swap):
        added, read = (vector.astype(np.float32) for vector in edits.exchange(one))
        yield made(vector=added, strength=one.strength, units=units, read=read)
        return
    read = np.asarray(one.vector, np.float64)
    read = (read / np.linalg.norm(read)).astype(np.float32)
    added = np.zeros_like(read)
    for first, last in _runs(one, len(read)):
        added[first:last] = read[first:last]
    yield made(vector=added, strength=-one.strength, units=units, read=read)


def _moved(made: Any, one: Any, value: Value, units: tuple[int, int], donors: Donors) -> Edit:
    """Scaled, moved towards zero or another text's value, or with a vector or noise added."""
    if isinstance(one, Scale):
        return made(vector=None, units=units, factor=one.strength)
    if isinstance(one, Add):
        size = _shape(value)[1]
        at = units[0] % size
        vector = np.asarray(one.vector, np.float64)[at : at + units[1] - units[0]].astype(np.float32)
        return made(vector=vector, strength=one.strength, units=units)
    if isinstance(one, Noise):
        size = int(np.prod(value.shape))

        def noise(positions: np.ndarray) -> np.ndarray:
            return edits.noise(one, value.name, positions, size)[:, slice(*units)]

        return made(vector=noise, strength=one.strength, units=units)
    if isinstance(one, Ablate) and one.to == "zero":
        return made(vector=None, units=units, factor=1 - one.strength)
    return made(
        vector=_taken(one, value, units, donors), strength=one.strength, units=units, factor=1 - one.strength
    )


def _taken(one: Patch | Ablate, value: Value, units: tuple[int, int], donors: Donors) -> Any:
    """What an edit moves a value to: a vector, or one for each position."""
    texts = [one.ids] if isinstance(one, Patch) else one.reference
    rows = [donors.rows(ids, value.name)[:, slice(*units)] for ids in texts]
    pool = rows[0] if len(rows) == 1 else np.concatenate(rows)
    if isinstance(one, Patch):
        return lambda positions: pool[positions]
    if one.to == "mean":
        return pool.mean(axis=0, dtype=np.float64).astype(np.float32)
    drawn = edits.drawn(one, len(pool), donors.config.context)
    return lambda positions: pool[drawn[positions]]
