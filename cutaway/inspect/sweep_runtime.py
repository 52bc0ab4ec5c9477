"""Sweeps in the runtime's step: a cell is read from its first changed position and layer on.

A lane holds the keys and values of a text up to a position, and cells that differ from there on are read into
it in turns: a cell at layer l writes those of the layers from l on, after that position, and the next one
begins again there. So a text's beginning is read once, however many cells there are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from cutaway.inspect import runtime_edits
from cutaway.inspect.edits import Given
from cutaway.inspect.instrumented import BY_HEAD
from cutaway.inspect.instrumented_runtime import InstrumentedRuntime
from cutaway.inspect.sweep_cells import Cell, Seen, Setting
from cutaway.runtime.edits import Edit
from cutaway.runtime.engine import RuntimeEngine
from cutaway.runtime.kv_cache import State
from cutaway.runtime.values import PATTERN

CALL = 512  # tokens in one call of the engine
LANES, LANE_BYTES = 256, 384 << 20  # at most so many lanes at once, and what their keys and values may take


class Lane(NamedTuple):
    """A text, a position up to which it is read, and a number: cells of one layer need a lane each."""

    text: int
    first: int
    number: int


class View(NamedTuple):
    """The engine from a layer on, and the columns of its logits that are asked for."""

    layer: int
    engine: RuntimeEngine
    columns: slice | list[int]


class RuntimeSweep:
    """Cells of texts, read by the runtime."""

    def __init__(self, of: InstrumentedRuntime, texts: Sequence[Sequence[int]], edit: Given = ()) -> None:
        assert isinstance(of.engine, RuntimeEngine)
        self.of, self.engine, self.texts, self.edit = of, of.engine, texts, edit
        self.edits = runtime_edits.prepare_each(of.engine, [edit] * len(texts), list(map(len, texts)))
        self.cuts = not of.engine.packed.state_size  # a recurrence's state is that of a whole text
        self.enters = of.engine.enters
        self._seen: dict[str, list[np.ndarray]] = {}  # of the texts as they are
        self._late: dict[int, RuntimeEngine] = {}  # the engine from each layer on
        self._whole: dict[int, State] = {}  # each text's keys and values

    def batches(self, cells: Sequence[Cell]) -> list[list[int]]:
        lanes: dict[Lane, list[int]] = {}
        for i, lane in enumerate(self._lanes(cells)):
            lanes.setdefault(lane, []).append(i)
        pages = -(-max(map(len, self.texts)) // self.engine.page)
        size = max(1, min(LANES, LANE_BYTES // (pages * self.engine.page_bytes)))
        groups, left = [], iter(sorted(lanes, key=lambda lane: (lane.text, -lane.first, lane.number)))
        while some := list(islice(left, size)):
            groups.append([i for lane in some for i in lanes[lane]])
        return groups

    def run(
        self,
        cells: Sequence[Cell],
        names: Sequence[str] = (),
        position: int | None = None,
        tokens: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Seen]]:
        lanes = self._lanes(cells)
        states = {lane: self._state(lane) for lane in dict.fromkeys(lanes)}
        by_layer: dict[int, list[int]] = {}
        for i, cell in enumerate(cells):
            by_layer.setdefault(cell.layer if self.enters else 0, []).append(i)
        for layer, chosen in by_layer.items():
            view = self._view(layer, tokens)
            new = [len(self.texts[lanes[i].text]) - lanes[i].first for i in chosen]
            for call in _calls(chosen, new):
                reads = [(i, lanes[i], states[lanes[i]]) for i in call]
                yield from self._call(view, reads, cells, names, position, tokens)

    def _lanes(self, cells: Sequence[Cell]) -> list[Lane]:
        """The lane of each cell."""
        taken: Counter[tuple[int, int, int]] = Counter()
        found = []
        for cell in cells:
            first = cell.first if self.cuts else 0
            layer = cell.layer if self.enters else 0
            found.append(Lane(cell.text, first, taken[cell.text, first, layer]))
            taken[cell.text, first, layer] += 1
        return found

    def _state(self, lane: Lane) -> State:
        """The keys and values of a lane's text, of which a cell keeps those up to the lane's position."""
        if not lane.first:
            return self.engine.new_state()
        if lane.text not in self._whole:
            state = self.engine.edited_state(self.edits[lane.text])
            self.engine.prefill(self.texts[lane.text], state)
            self._whole[lane.text] = state
        return self.engine.fork(self._whole[lane.text])

    def _view(self, layer: int, tokens: Sequence[int] | None) -> View:
        """The engine from a layer on, and the columns of its logits that are asked for."""
        if layer not in self._late:
            self._late[layer] = self.engine.last_layers(layer) if layer else self.engine
        engine = self._late[layer]
        if tokens is None or layer == 0:
            return View(layer, engine, slice(None) if tokens is None else list(tokens))
        return View(layer, *engine.logits_of(tokens))

    def _call(
        self,
        view: View,
        reads: Sequence[tuple[int, Lane, State]],
        cells: Sequence[Cell],
        names: Sequence[str],
        position: int | None,
        tokens: Sequence[int] | None,
    ) -> Iterator[tuple[int, Seen]]:
        """Reads cells together from a layer on."""
        texts, at, counts = [], [], [0]
        begins = [0]
        for i, lane, state in reads:
            state.truncate(lane.first)
            state.announced = len(self.texts[lane.text])
            view.engine.edit(state, [*self._entry(lane, view.layer), *self._edits(cells[i], view.layer)])
            new = self.texts[lane.text][lane.first :]
            texts.append([0] * len(new) if view.layer else new)
            rows = self._logits_at(lane, position)
            at += [begins[-1] + row for row in rows]
            counts.append(len(at))
            begins.append(begins[-1] + len(new))
        inner = {name: _renumbered(name, view.layer) for name in names if _layer(name) >= view.layer}
        logits, seen = _observed(view.engine, texts, [state for *_, state in reads], list(inner.values()), at)
        logits = logits[:, view.columns]
        for n, (i, lane, _) in enumerate(reads):
            rows = slice(begins[n], begins[n + 1])
            own = {name: self._joined(lane, name, seen[inside][rows]) for name, inside in inner.items()}
            own |= {name: self._own(name)[lane.text] for name in names if name not in inner}
            yield i, Seen(self._scores(lane, tokens, logits[counts[n] : counts[n + 1]], position), own)

    def _entry(self, lane: Lane, layer: int) -> Iterator[Edit]:
        """The start of a text at a layer: its residual stream, and the subject's edits from there on."""
        if layer:
            stream = self._own(f"blocks.{layer - 1}.out")[lane.text]
            yield Edit(0, stream.__getitem__, factor=0.0, what="embed")
        for edit in self.edits[lane.text]:
            if edit.layer >= layer and not (layer and edit.what == "embed"):
                yield edit._replace(layer=edit.layer - layer)

    def _edits(self, cell: Cell, layer: int) -> Iterator[Edit]:
        """A cell's settings: nothing is left of what was, and the new rows are added."""
        for one in cell.settings:
            rows = _by_position(one)
            weights = one.what == PATTERN
            size = 1 if weights else rows.shape[1]
            place = {at: n for n, at in enumerate(one.positions)}
            yield Edit(
                one.layer - layer,
                lambda at, rows=rows, place=place: rows[[place[each] for each in at.tolist()]],
                factor=0.0,
                positions=frozenset(place),
                what=one.what,
                units=None if one.head is None else (one.head * size, (one.head + 1) * size),
                keys=frozenset(range(rows.shape[2])) if weights else None,
            )

    def _own(self, name: str) -> list[np.ndarray]:
        """A value of each text as it is."""
        if name not in self._seen:
            names = ["blocks.*.out", name] if name.endswith(".out") and name.count(".") == 2 else [name]
            found = self.of.values(self.texts, names, [self.edit] * len(self.texts))
            for each in found[0]:
                self._seen[each] = [one[each] for one in found]
        return self._seen[name]

    def _logits_at(self, lane: Lane, position: int | None) -> list[int]:
        """The rows of what is read of a lane whose logits are asked for."""
        length = len(self.texts[lane.text])
        if position is None:
            return list(range(length - lane.first))
        at = position % length - lane.first
        return [at] if at >= 0 else []

    def _scores(
        self, lane: Lane, tokens: Sequence[int] | None, logits: np.ndarray, position: int | None
    ) -> np.ndarray:
        """The logits asked for; before the lane's position they are the text's own."""
        if len(logits) and (position is not None or not lane.first):
            return logits if position is None else logits[0]
        own = self._own("logits")[lane.text]
        own = own if tokens is None else own[:, list(tokens)]
        return own[position] if position is not None else np.concatenate([own[: lane.first], logits])

    def _joined(self, lane: Lane, name: str, rows: Any) -> np.ndarray:
        """A value of a whole text: its own rows up to the lane's position, and those that were read."""
        by_head = name.rpartition(".")[2] in BY_HEAD
        if name.endswith(".pattern"):
            square = np.zeros((len(rows[0]), len(rows), len(self.texts[lane.text])), np.float32)
            for at, row in enumerate(rows):
                square[:, at, : row.shape[1]] = row
            rows, by_head = square, True
        elif by_head:
            rows = rows.swapaxes(0, 1)
        if not lane.first:
            return rows
        axis = 1 if by_head else 0
        own = np.take(self._own(name)[lane.text], range(lane.first), axis)
        return np.concatenate([own, rows], axis)


def _by_position(one: Setting) -> np.ndarray:
    """A setting's rows [p n] as the step has them: of attention weights [p h s]."""
    if one.what == PATTERN:
        return one.rows[:, None] if one.head is not None else one.rows.swapaxes(0, 1)
    by_head = one.head is None and one.what.rpartition(".")[2] in BY_HEAD
    return (one.rows.swapaxes(0, 1) if by_head else one.rows).reshape(len(one.positions), -1)


def _calls(chosen: Sequence[int], new: Sequence[int]) -> Iterator[list[int]]:
    """Cells that are read in one call, so many new tokens of each: calls of like sizes."""
    size = sum(new) / max(1, round(sum(new) / CALL))
    call: list[int] = []
    tokens = 0
    for i, more in zip(chosen, new, strict=True):
        if call and tokens + more / 2 > size:
            yield call
            call, tokens = [], 0
        call.append(i)
        tokens += more
    yield call


def _observed(
    engine: RuntimeEngine,
    texts: Sequence[Sequence[int]],
    states: Sequence[State],
    names: Sequence[str],
    at: Sequence[int],
) -> tuple[np.ndarray, dict[str, Any]]:
    """What ``observe`` gives; one text longer than two calls is read in pieces."""
    if len(texts) > 1 or len(texts[0]) <= 2 * CALL:
        return engine.observe(texts, states, names, at)
    logits, parts = [], []
    for start in range(0, len(texts[0]), CALL):
        rows = [row - start for row in at if start <= row < start + CALL]
        scores, seen = engine.observe([texts[0][start : start + CALL]], states, names, rows)
        logits.append(scores)
        parts.append(seen)
    joined = {name: [row for part in parts for row in part[name]] for name in names}
    arrays = {name: np.stack(rows) for name, rows in joined.items() if not name.endswith(".pattern")}
    return np.concatenate(logits), joined | arrays


def _layer(name: str) -> float:
    """The layer of a value; the embedding is before all."""
    return int(name.split(".")[1]) if name.startswith("blocks.") else -math.inf


def _renumbered(name: str, first: int) -> str:
    """The name of a value in the engine whose layer 0 is ``first``."""
    _, layer, what = name.split(".", 2)
    return f"blocks.{int(layer) - first}.{what}"
