"""One forward pass of the core: new tokens of many sequences, or one token of a single one."""

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.native import library
from cutaway.native.library import check, function
from cutaway.native.structures import Edit, Model, Observation, Reading, Value, check_sizes

PAGE = 128  # positions of a page of the state
HOWS = ("move", "along", "exchange", "return")  # step.hpp's How
OUT, PATTERN = 2, 27  # step.hpp's What
VALUES = PATTERN  # what a forward pass can write out: What in step.hpp

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int32


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


def run_step(
    model: Model,
    ids: np.ndarray,
    starts: np.ndarray,
    positions: np.ndarray,
    pages: Sequence[np.ndarray],
    logits_at: np.ndarray,
    threads: int | None = None,
    after: np.ndarray | None = None,
    watched: Sequence[tuple[int, int, int]] = (),
    adapters: Sequence[int | None] | None = None,
    values: Sequence[tuple[int, int]] = (),
    edits: Sequence[EditOf] = (),
    states: Sequence[np.ndarray] = (),
    longer: np.ndarray | None = None,
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Reads new tokens of sequences into their pages: float32 [logits_at vocab], attention, and values.

    ``ids`` int32 [tokens], those of sequence s from ``starts[s]`` to ``starts[s + 1]``, the first at
    ``positions[s]``; ``pages[s]`` uint64 [n]: the addresses of its pages. ``after`` int32 [logits_at] names
    the layer after which the head reads, the last where it is not given (the logit lens). ``watched`` are
    a token, a layer, and 0 for weights or 1 for scores: float32 [heads position + 1] of each, or 2 for the
    positions that an indexer chose: [1 position + 1]. ``adapters``
    are each sequence's, the address of its array of ``LayerAdapter`` or None. ``values`` are pairs of a
    number (What in step.hpp) and a layer: float32 [tokens n] of each, as the ``edits`` leave it. ``states``
    float32 are each sequence's state of recurrent layers, where there are any; ``longer`` int32 [sequences]:
    whether a sequence rotates by longer radians. Raises UserError for what does not fit together."""
    check_sizes()
    _fits(model, ids, starts, positions, pages, logits_at)
    _check_states(model, states, len(pages))
    _check_beside(model, len(pages), len(logits_at), after, adapters, longer)
    patterns = _patterns(model, starts, positions, watched)
    given = [np.empty((len(ids), _value_size(model, *each)), np.float32) for each in values]
    asked = np.array(watched, np.int32).reshape(-1, 3)
    out = np.empty((len(logits_at), model.vocab), np.float32)
    tables, held, drawn = map(_addresses, (pages, states, patterns))
    adapted = np.array([each or 0 for each in adapters or ()], np.uint64)
    reading = Reading(
        *(array.ctypes.data for array in (ids, starts, positions, tables)),
        None if longer is None else longer.ctypes.data,
        held.ctypes.data,
        adapted.ctypes.data if adapted.any() else None,
        logits_at.ctypes.data,
        None if after is None else after.ctypes.data,
        *(array.ctypes.data for array in (out, asked, drawn)),
        *(len(each) for each in (pages, logits_at, asked)),
        0,
    )
    changes = [_edit(model, len(ids), each) for each in edits]
    outs = [Value(room.ctypes.data, *each) for room, each in zip(given, values, strict=True)]
    if _run(model, reading, outs, changes, threads):
        raise OperationalError(f"There is no memory to read {len(ids)} tokens at once; read fewer.")
    return out, patterns, given


def _run(model: Model, reading: Reading, values: list[Value], edits: list[Edit], threads: int | None) -> int:
    """Calls the core, which writes the values and makes the edits where there are any; not 0: no memory."""
    threads = library.threads() if threads is None else threads
    if not values and not edits:
        call = function("cutaway_read", ctypes.POINTER(Model), ctypes.POINTER(Reading), _INT, result=_INT)
        return call(model, reading, threads)
    check_sizes("cutaway_observation_sizes", Value, Edit, Observation)
    rooms, changes = (Value * len(values))(*values), (Edit * len(edits))(*edits)
    seen = Observation(*map(ctypes.addressof, (rooms, changes)), len(values), len(edits))
    observe = function("cutaway_observe", *[_POINTER] * 3, _INT, result=_INT)
    return observe(*map(ctypes.addressof, (model, reading, seen)), threads)


def _addresses(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([each.ctypes.data for each in arrays], np.uint64)


def _check_beside(
    model: Model,
    sequences: int,
    logits: int,
    after: np.ndarray | None,
    adapters: Sequence[int | None] | None,
    longer: np.ndarray | None,
) -> None:
    """UserError unless there is one adapter and one rotation a sequence, and one layer a logit, or none."""
    if longer is not None:
        check("longer", longer, np.int32)
        if longer.shape != (sequences,):
            raise UserError(f"{len(longer)} words are not one for each of {sequences} sequences.")
    if after is not None:
        check("after", after, np.int32)
        if len(after) != logits or (len(after) and not 0 <= after.min() <= after.max() < model.layer_count):
            raise UserError(f"The layers {after.tolist()} are not one of {model.layer_count} a logit")
    if adapters and len(adapters) != sequences:
        raise UserError(f"{len(adapters)} adapters are not one for each of {sequences} sequences.")


def _fits(
    model: Model,
    ids: np.ndarray,
    starts: np.ndarray,
    positions: np.ndarray,
    pages: Sequence[np.ndarray],
    logits_at: np.ndarray,
) -> None:
    for name, array in ("ids", ids), ("starts", starts), ("positions", positions), ("logits_at", logits_at):
        check(name, array, np.int32)
    counts = starts[1:] - starts[:-1]
    if not len(ids) or len(pages) != len(positions) or len(starts) != len(pages) + 1:
        raise UserError("Each sequence needs at least one new token, its first position and its pages.")
    if starts[0] != 0 or starts[-1] != len(ids) or (counts < 1).any():
        raise UserError(f"The starts {starts.tolist()} do not divide {len(ids)} tokens.")
    if ids.min() < 0 or ids.max() >= model.vocab:
        raise UserError(f"An id is outside the model's 0 to {model.vocab - 1}.")
    if len(logits_at) and (logits_at.min() < 0 or logits_at.max() >= len(ids)):
        raise UserError(f"Logits are asked for of a token outside the {len(ids)} that are read.")
    for count, position, own in zip(counts.tolist(), positions.tolist(), pages, strict=True):
        check("pages", own, np.uint64)
        if position < 0 or len(own) * PAGE < position + count:
            raise UserError(f"{len(own)} pages do not hold positions {position} to {position + count - 1}.")


def _check_states(model: Model, states: Sequence[np.ndarray], sequences: int) -> None:
    """UserError unless each sequence has a state of recurrent layers, where there are any."""
    if model.state_size and len(states) != sequences:
        raise UserError(f"{len(states)} recurrent states are not those of {sequences} sequences.")
    for state in states:
        check("states", state, np.float32, written=True)
        if state.size != model.state_size:
            raise UserError(f"A recurrent state has {state.size} numbers, and {model.state_size} are needed.")


def _patterns(
    model: Model, starts: np.ndarray, positions: np.ndarray, watched: Sequence[tuple[int, int, int]]
) -> list[np.ndarray]:
    """Room for the attention of each watched token and layer."""
    rooms = []
    for token, layer, which in watched:
        if not (0 <= token < starts[-1] and 0 <= layer < model.layer_count):
            raise UserError(f"There is no token {token} and layer {layer} to watch.")
        sequence = int(np.searchsorted(starts, token, side="right")) - 1
        length = int(positions[sequence]) + token - int(starts[sequence]) + 1
        rooms.append(np.empty((1 if which == 2 else model.layers[layer].heads, length), np.float32))
    return rooms


def _edit(model: Model, tokens: int, by: EditOf) -> Edit:
    """An edit, checked and laid out for the core."""
    pattern, (first, last) = by.what == PATTERN, by.units
    size = model.layers[by.layer].heads if pattern else _value_size(model, by.what, by.layer)
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


def _value_size(model: Model, what: int, layer: int) -> int:
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


class OneToken:
    """``read`` of one token of one text with structures made once; for one thread at a time."""

    def __init__(
        self,
        model: Model,
        threads: int | None = None,
        adapter: int | None = None,
        state: np.ndarray | None = None,
    ) -> None:
        self._call = function(
            "cutaway_read", ctypes.POINTER(Model), ctypes.POINTER(Reading), _INT, result=_INT
        )
        check_sizes()
        self._model, self._vocab = model, model.vocab
        self._threads = library.threads() if threads is None else threads
        self._id, self._position, self._logits_count, self._table = _INT(), _INT(), _INT(0), _POINTER()
        self._starts = (_INT * 2)(0, 1)
        self._pages: np.ndarray | None = None
        _check_states(model, [] if state is None else [state], 1)
        self._adapter, self._state = _POINTER(adapter), _POINTER(None if state is None else state.ctypes.data)
        self.longer = _INT(0)
        held = (self._id, self._starts, self._position, self._table, self.longer, self._state)
        places = map(ctypes.addressof, held)
        beside = None if adapter is None else ctypes.addressof(self._adapter)
        count = ctypes.addressof(self._logits_count)
        self._reading = Reading(*places, beside, count, None, None, None, None, 1, 1, 0, 0)

    def read(self, id: int, position: int, pages: np.ndarray) -> np.ndarray:
        """float32 [vocab]: the logits after ``id`` at ``position``; ``pages`` as ``run_step`` takes them."""
        if not 0 <= id < self._vocab:
            raise UserError(f"An id is outside the model's 0 to {self._vocab - 1}.")
        if position < 0 or len(pages) * PAGE <= position:
            raise UserError(f"{len(pages)} pages do not hold position {position}.")
        if pages is not self._pages:  # the pages of the token before were checked
            check("pages", pages, np.uint64)
            self._pages = pages
        out = np.empty(self._vocab, np.float32)
        self._id.value, self._position.value, self._table.value = id, position, pages.ctypes.data
        self._reading.logits = out.ctypes.data
        if self._call(self._model, self._reading, self._threads):
            raise OperationalError("There is no memory to read a token.")
        return out
