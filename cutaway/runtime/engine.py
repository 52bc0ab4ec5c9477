"""The runtime as an engine (generate/engine.py's protocol): ids in, logits out, a KV cache for each text."""

from __future__ import annotations

import copy
import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of
from cutaway.native import library, packed_product, step, structures
from cutaway.runtime import cache_formats, matmul
from cutaway.runtime.adapter import AdapterPlan
from cutaway.runtime.block_numbers import attends, first_length, latent
from cutaway.runtime.edits import NEVER, Edit
from cutaway.runtime.kv_cache import Kept, Pages, State
from cutaway.runtime.packing import PackedModel
from cutaway.runtime.values import ENDS, LOGITS, LOOKS, PATTERN, Value, Values, editable, moved_alone, named
from cutaway.weights.changes import Adapter
from cutaway.weights.named_tensors import Tensors

CHUNK = 512  # tokens of a prompt read at once: bounds what a long one needs beside its state


class RuntimeEngine:
    """A model on the CPU, from its packed weights. Raises UserError for one that the step does not know."""

    def __init__(
        self,
        config: Decoder,
        tensors: Tensors,
        threads: int | None = None,
        kv_cache: cache_formats.Kind = "F16",
    ) -> None:
        self.packed = PackedModel(config, tensors, kv_cache)
        self.kv_cache: cache_formats.Kind = kv_cache
        self.config, self._model = config, self.packed.model
        self._tensors, self._adapter = tensors, None
        self.vocab = config.vocab
        self.max_context = config.context
        self.layers = len(config.blocks)
        self.page, self.grid, self.page_bytes = step.PAGE, 1, 2 * self.packed.page_halves
        if self.packed.state_size:  # what a recurrence holds is shared where a prompt may be cut, as a copy
            self.page = self.grid = CHUNK
            self.page_bytes = CHUNK // step.PAGE * self.page_bytes + 4 * self.packed.state_size
        position_bytes = 2 * self.packed.page_halves / step.PAGE
        self.weights_in_positions = int(self.packed.token_nbytes / max(1.0, position_bytes))
        self.threads = threads
        self._head = self._head_bias = np.empty(0, np.uint8)  # of a view with a part of the head
        self._values_of: tuple[Decoder, dict[tuple[str, ...], tuple[Value, ...]]] = (config, {})
        self._places: dict[tuple[str, int], tuple[int, int]] = {}  # What and size of a value that is edited
        self._store = Pages(self.packed.page_halves, self.packed.state_size, first_length(config))

    def new_state(self) -> State:
        return State(self._store, self._adapter)

    def edited_state(self, edits: Sequence[Edit], kept: Sequence[Any] = ()) -> State:
        """A state that holds these pages, which no edit changes; what is read after them is edited."""
        return self.edit(self.resume(kept), edits)

    def edit(self, state: State, edits: Sequence[Edit]) -> State:
        """The state; what is read into it from now on is edited, in the edits' order."""
        state.edits = tuple(edits)
        for edit in state.edits:
            if edit.how != "move" and moved_alone(self.config, edit.layer, edit.what):
                raise UserError(f"the runtime only scales and sets blocks.{edit.layer}.{edit.what}")
            if (edit.what, edit.layer) in self._places:
                continue
            name = edit.what if edit.what in ENDS else f"blocks.{edit.layer}.{edit.what}"
            (value,) = self._named((name,))
            if not editable(name):
                raise UserError(f"the runtime shows {name} and does not edit it")
            what = step.PATTERN if value.what == LOOKS[PATTERN] else value.what
            self._places[edit.what, edit.layer] = what, math.prod(value.shape)
        return state

    @staticmethod
    def edits_begin(edits: Sequence[Edit]) -> int:
        """The first position that edits change: what is before it are pages of any text."""
        return min((edit.begins for edit in edits), default=NEVER)

    def first_layers(self, count: int) -> RuntimeEngine:
        """The same engine with its first layers alone, for their values; its states are its own."""
        view = copy.copy(self)
        view._model = structures.Model.from_buffer_copy(self.packed.model)
        view._model.layer_count = count
        return view

    @property
    def enters(self) -> bool:
        """Whether ``last_layers`` may leave layers out: none reads another's keys, or goes by its number."""
        own = all(
            getattr(block.attention, name, None) is None
            for block in self.config.blocks
            for name in ("kv_layer", "index_layer")
        )
        return own and not self.config.per_layer and self._adapter is None

    def last_layers(self, first: int) -> RuntimeEngine:
        """The same engine from a layer on, which it numbers 0, where it ``enters``: an edit sets ``embed`` to
        the residual stream before it. It reads into states of this engine.
        """
        view = copy.copy(self)
        view._model = structures.Model.from_buffer_copy(self.packed.model)
        view._model.layers = ctypes.pointer(self.packed.model.layers[first])
        view._model.layer_count -= first
        view.config = replace(self.config, blocks=self.config.blocks[first:])
        view._places = {}
        return view

    def logits_of(self, tokens: Sequence[int]) -> tuple[RuntimeEngine, list[int]]:
        """The same engine whose head gives the logits of these tokens' panels alone, and where theirs are. It
        reads id 0 at every position, of texts whose ``embed`` is set.
        """
        view, head = copy.copy(self), self.packed.model.head
        size = packed_product.packed_bytes(self._head_type, packed_product.PANEL, head.columns)
        chosen = sorted({token // packed_product.PANEL for token in tokens})
        view._head = packed_product.lined(len(chosen) * size)  # keeps it as long as the view
        for n, panel in enumerate(chosen):
            ctypes.memmove(view._head[n * size :].ctypes.data, head.panels + panel * size, size)
        view._model = structures.Model.from_buffer_copy(self._model)
        view._model.head = packed_product.Matrix.from_buffer_copy(head)
        view._model.head.panels = view._head.ctypes.data
        view._model.head.rows = view._model.vocab = view.vocab = len(chosen) * packed_product.PANEL
        if head.bias:
            rows = np.concatenate(
                [np.arange(packed_product.PANEL) + panel * packed_product.PANEL for panel in chosen]
            )
            bias = np.ctypeslib.as_array((ctypes.c_float * head.rows).from_address(head.bias))
            view._head_bias = np.ascontiguousarray(bias[np.minimum(rows, head.rows - 1)])
            view._model.head.bias = view._head_bias.ctypes.data
        return view, [
            chosen.index(one // packed_product.PANEL) * packed_product.PANEL + one % packed_product.PANEL
            for one in tokens
        ]

    def adapted(self, adapter: Adapter | None) -> RuntimeEngine:
        """This engine with an adapter beside its packed weights, which both share; None is without.

        A text keeps the adapter of the engine that made its state, and any of these engines reads texts of
        several adapters in one batch. Raises UserError for changes that only the PyTorch model applies.
        """
        view = copy.copy(self)
        view._adapter = None if adapter is None else AdapterPlan(self.packed.config, self._tensors, adapter)
        return view

    @property
    def scope(self) -> bytes:
        """A key for pages: the adapter that they depend on."""
        return b"" if self._adapter is None else self._adapter.key

    def make_ahead(self, pages: int, pause: Callable[[], None]) -> bool:
        """Allocate a page of the KV cache ahead of need, and return whether it did; any thread may call it.

        It does not if ``pages`` are ready or the store is full. ``pause`` is called between pieces of work.
        """
        if self._store.spare() >= min(pages, self._store.most):
            return False
        self._store.make(pause)
        return True

    def prefill(self, ids: Sequence[int], state: State) -> np.ndarray:
        """Reads ids after what the state holds; float32 [v], the logits of what comes next."""
        if not ids:
            raise ValueError("an engine reads at least one id")
        logits = np.empty((0, 0), np.float32)
        state.announced = state.length + len(ids)
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            last = start + len(chunk) == len(ids)
            logits = self.read([chunk], [state], [len(chunk) - 1] if last else [])
        return logits[0]

    def step(self, id: int, state: State) -> np.ndarray:
        """Reads one id; float32 [v]."""
        if state.edits:
            return self.read([[id]], [state], [0])[0]
        self._make_room(state, 1)
        if state.one is None:
            held = state.recurrent if state.recurrent.size else None
            state.one = step.OneToken(self._model, self.threads, state.adapter_address, held)
        state.one.longer.value = bool(state.longer)
        logits = state.one.read(id, state.length, state.addresses)
        state.passed([id])
        return logits

    def step_each(self, ids: Sequence[int], states: Sequence[State]) -> np.ndarray:
        """Reads one id of each of several texts at once: float32 [b v]."""
        return self.read([[id] for id in ids], states, range(len(ids)))

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """float32 [t v]: at each position, the logits of what comes next."""
        return self.prefill_all_logits(ids, self.new_state())

    def prefill_all_logits(self, ids: Sequence[int], state: State) -> np.ndarray:
        """Reads ids after what the state holds: float32 [k v], the logits of what comes after each."""
        parts = []
        state.announced = state.length + len(ids)
        for start in range(0, len(ids), CHUNK):
            chunk = ids[start : start + CHUNK]
            parts.append(self.read([chunk], [state], range(len(chunk))))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    @property
    def _head_type(self) -> str:
        """What the head's rows are stored as."""
        return self._tensors.later("embedding.weight" if self.config.tied else "head.weight").type

    def head_product(self, x: np.ndarray) -> np.ndarray:
        """float32 [n v]: the head's matrix times vectors [n d], by the step's kernel (matmul)."""
        head, type = self.packed.model.head, self._head_type
        size = packed_product.packed_bytes(type, head.rows, head.columns)
        panels = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(head.panels))
        threads = library.threads() if self.threads is None else self.threads

        def product(x: np.ndarray) -> np.ndarray:
            return packed_product.multiply(type, head.rows, head.columns, panels, x, threads)

        scores = product(x)
        if not matmul.reads_eight_bits(type):
            return scores
        return scores + product(x - matmul.rounded(x, type))

    def mark(self, state: State, lasting: bool = False) -> None:
        """Before a draft is read: recurrent layers can come back to what they hold now. A ``lasting`` mark
        stays when drafts are marked.
        """
        state.mark(lasting)

    def no_rewinding(self) -> str | None:
        """Why states come back only to where they were marked; None where they forget any ids."""
        return "its recurrent layers forget no token that they have read" if self.packed.state_size else None

    def rewindable(self, state: State) -> int:
        """How many ids more a state may read and forget again: none past which it rotates otherwise."""
        first, context = self._store.first_length, self.max_context
        return (context if first is None or state.length >= first else first) - state.length

    def keep(self, state: State, page: int) -> np.ndarray | State | Kept:
        """A full page of the state, for others to read; of a recurrent model the state at the page's end."""
        if not self.packed.state_size and self._store.first_length is None:
            return state.pages[page]
        if not self.packed.state_size:
            ids = state.ids[page * step.PAGE : (page + 1) * step.PAGE]
            return Kept(state.pages[page], ids, state.longer)
        if state.length != (page + 1) * self.page:
            raise ValueError(f"a state of {state.length} ids does not end with its page {page}")
        return state.snapshot()

    def resume(self, kept: Sequence[Any]) -> State:
        """A state that holds what was kept, the first pages of a text."""
        if kept and self.packed.state_size:
            state = kept[-1].snapshot()
            state.edits = ()
            return state
        state = self.new_state()
        if not kept or not isinstance(kept[0], Kept):
            state.borrow(kept)
            return state
        state.borrow([each.page for each in kept])
        state.ids, rotated = [id for each in kept for id in each.ids], {each.longer for each in kept}
        state.longer = rotated.pop() if len(rotated) == 1 else None
        return state

    def page_arrays(self, kept: Any, page: int) -> list[np.ndarray]:
        """What makes up a kept page, number ``page`` of its text, beside its ids and the pages before it."""
        rotated = [] if self._store.first_length is None else [np.array([bool(kept.longer)], np.uint8)]
        if self.packed.state_size:
            each = self.page // step.PAGE
            return [*kept.pages[page * each : (page + 1) * each], kept.recurrent, *rotated]
        return [kept.page if rotated else kept, *rotated]

    def blank_page(self) -> list[np.ndarray]:
        """Arrays of the sizes of ``page_arrays``, to be filled."""
        return self.blank_state(self.page)

    def state_arrays(self, state: State) -> list[np.ndarray]:
        """All that a state holds beside its ids: its pages, and what recurrent layers have at its end.

        Where a recurrence ends within a page, the rest of the page is filled by reading id 0 into a copy. So
        what other texts left there is not in it.
        """
        filled, empty = state, min(-state.length % step.PAGE, self.rewindable(state))
        if empty and self.packed.state_size:
            filled = state.snapshot()
            self.read([[0] * empty], [filled], [])
        recurrent = [state.recurrent] if self.packed.state_size else []
        rotated = [] if self._store.first_length is None else [np.array([bool(state.longer)], np.uint8)]
        return [*filled.pages, *recurrent, *rotated]

    def blank_state(self, length: int) -> list[np.ndarray]:
        """Arrays of the sizes of ``state_arrays`` for a state of so many ids, to be filled."""
        recurrent = [np.empty(self.packed.state_size, np.float32)] if self.packed.state_size else []
        rotated = [] if self._store.first_length is None else [np.empty(1, np.uint8)]
        return [*(self._store.take() for _ in range(-(-length // step.PAGE))), *recurrent, *rotated]

    def stored_state(self, arrays: Sequence[np.ndarray], ids: Sequence[int]) -> State:
        """The state of these ids of what ``state_arrays`` gave; it takes the arrays over."""
        state, count = self.new_state(), -(-len(ids) // step.PAGE)
        state.borrow(arrays[:count])
        state.length = state.announced = len(ids)
        if self.packed.state_size:
            state.recurrent[:] = arrays[count]
        if self._store.first_length is not None:
            state.ids, state.longer = list(ids), bool(arrays[-1][0])
        return state

    def kept_page(self, arrays: Sequence[np.ndarray], ids: Sequence[int], before: Any) -> Any:
        """The kept page with these ids of what ``page_arrays`` gave; ``before`` is the one before it."""
        longer = bool(arrays[-1][0]) if self._store.first_length is not None else False
        if not self.packed.state_size:
            return arrays[0] if self._store.first_length is None else Kept(arrays[0], list(ids), longer)
        state, pages = self.new_state(), () if before is None else before.pages
        state.borrow([*pages, *arrays[: self.page // step.PAGE]])
        state.recurrent[:] = arrays[self.page // step.PAGE]
        if self._store.first_length is not None:
            state.ids, state.longer = [*(before.ids if before else ()), *ids], longer
            state.announced = state.length
        return state

    def fork(self, state: State) -> State:
        """Another state that holds what this one does: it shares the full pages and copies the last."""
        if self.packed.state_size:
            return state.snapshot()
        full = state.length // step.PAGE
        fork = self.new_state()
        fork.borrow(state.pages[:full])
        fork.reserve(state.length)
        for own, page in zip(fork.pages[full:], state.pages[full:], strict=False):
            own[:] = page
        fork.continues(state)
        return fork

    def read(
        self, texts: Sequence[Sequence[int]], states: Sequence[State], logits_at: Sequence[int]
    ) -> np.ndarray:
        """Reads some ids of each text, each into its own state: float32 [n v], the logits after the ids at
        the indices ``logits_at`` among all ids. Neither what is read beside a text nor where it is cut
        changes a bit.
        """
        return self.watch(texts, states, logits_at)[0]

    def watch(
        self,
        texts: Sequence[Sequence[int]],
        states: Sequence[State],
        logits_at: Sequence[int],
        after: Sequence[int] | None = None,
        attention_at: Sequence[tuple[int, ...]] = (),
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Reads as ``read`` does, and looks inside: the logits after the layers ``after``, one for each of
        ``logits_at`` (the logit lens), and the attention weights float32 [h s] of each (index, layer) in
        ``attention_at``.
        """
        return self._read(texts, states, logits_at, after, attention_at)[:2]

    def observe(
        self,
        texts: Sequence[Sequence[int]],
        states: Sequence[State],
        names: Sequence[str],
        logits_at: Sequence[int] = (),
    ) -> tuple[np.ndarray, Values]:
        """Reads as ``read`` does, to the bit, and gives values of the tokens by name (``values.py``).

        A value is float32 [n ...], a row for each id; attention patterns and scores are lists of float32
        [h s], one for each id. Raises UserError before anything is read for a name that the runtime does not
        show.
        """
        wanted = self._named(tuple(names))
        looks, count = [one for one in wanted if one.name.endswith(tuple(LOOKS))], sum(map(len, texts))
        kinds = [next(n for n, look in enumerate(LOOKS) if one.name.endswith(look)) for one in looks]
        attention_at = [
            (at, one.layer, kind) for one, kind in zip(looks, kinds, strict=True) for at in range(count)
        ]
        rows, every = [one.name for one in wanted if one.what >= 0], any(one.what == LOGITS for one in wanted)
        head_at = range(count) if every else logits_at
        logits, patterns, out = self.watch_values(texts, states, head_at, None, attention_at, rows)
        out |= {one.name: patterns[n * count : (n + 1) * count] for n, one in enumerate(looks)}
        return (logits[list(logits_at)], out | {"logits": logits}) if every else (logits, out)

    def _named(self, names: tuple[str, ...]) -> tuple[Value, ...]:
        """``named`` of this config, whose hash takes as long as a layer; a view has another."""
        if self._values_of[0] is not self.config:
            self._values_of = self.config, {}
        known = self._values_of[1]
        if names not in known:
            known[names] = named(self.config, names)
        return known[names]

    def watch_values(
        self,
        texts: Sequence[Sequence[int]],
        states: Sequence[State],
        logits_at: Sequence[int],
        after: Sequence[int] | None,
        attention_at: Sequence[tuple[int, ...]],
        names: Sequence[str],
    ) -> tuple[np.ndarray, list[np.ndarray], Values]:
        """Reads as ``watch`` does, and gives values of the tokens by name: float32 [n ...], no patterns.

        With 1 behind an index and a layer, ``attention_at`` asks for scores in place of weights, with 2 for
        the positions that an indexer chose.
        """
        rows = self._named(tuple(names))
        logits, patterns, given = self._read(texts, states, logits_at, after, attention_at, rows)
        shaped = {one.name: self._shaped(one, value) for one, value in zip(rows, given, strict=True)}
        return logits, patterns, shaped

    def _read(
        self,
        texts: Sequence[Sequence[int]],
        states: Sequence[State],
        logits_at: Sequence[int],
        after: Sequence[int] | None,
        attention_at: Sequence[tuple[int, ...]],
        values: Sequence[Value] = (),
    ) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        blocks = self.config.blocks
        if unseen := [n for _, n, *_ in attention_at if not (attends(blocks[n]) or latent(blocks[n]))]:
            raise UserError(f"layer {unseen[0]} has no attention weights: its mixer is a recurrence")
        if len({id(state) for state in states}) < len(states):
            raise UserError("Two texts cannot be read into one state")
        for text, state in zip(texts, states, strict=True):
            self._make_room(state, len(text))
        first = self._store.first_length
        starts = np.cumsum([0, *map(len, texts)], dtype=np.int32)
        edits = [
            self._native(edit, int(start), state.length, *span)
            for text, state, start in zip(texts, states, starts, strict=False)
            for edit in state.edits
            if edit.layer < self._model.layer_count
            for span in edit.spans(state.length, len(text))
        ]
        seen = step.run_step(
            self._model,
            np.array([id for text in texts for id in text], np.int32),
            starts,
            np.array([state.length for state in states], np.int32),
            [state.addresses for state in states],
            np.array(logits_at, np.int32),
            self.threads,
            None if after is None else np.array(after, np.int32),
            [(at, layer, rest[0] if rest else 0) for at, layer, *rest in attention_at],
            [state.adapter_address for state in states],
            [(one.what, one.layer) for one in values],
            edits,
            [state.recurrent for state in states] if self.packed.state_size else (),
            np.array([bool(state.longer) for state in states], np.int32) if first else None,
        )
        for text, state in zip(texts, states, strict=True):
            state.passed(text)
        return seen

    def _native(self, edit: Edit, start: int, held: int, first: int, last: int) -> step.EditOf:
        """An edit as the native step takes it, of the tokens from ``first`` to ``last`` of a text that begins
        at ``start`` and whose state has ``held`` tokens.
        """
        what, size = self._places[edit.what, edit.layer]
        where = edit.units or (0, size), start + first, start + last
        added = edit.vectors(held, first, last), edit.strength, edit.factor
        read, keys = (
            (edit.read, (0, NEVER)) if edit.what != PATTERN else (edit.chosen_keys, edit.span_of_keys)
        )
        how = edit.how, read, edit.other or 0, keys, edit.renormalises
        return step.EditOf(what, edit.layer, *where, *added, *how)

    def _shaped(self, value: Value, rows: np.ndarray) -> np.ndarray:
        """A value of each token in its shape; keys and values as the KV cache keeps them."""
        rows = rows.reshape(-1, *value.shape)
        if value.name.endswith(".expert_indices"):
            return rows.astype(np.int64)
        if not value.name.endswith((".k", ".v", ".latent")):
            return rows
        of: Any = self.config.blocks[value.layer].attention
        if value.name.endswith(".latent"):
            return cache_formats.stored_latent(rows, of.latent, self.kv_cache).astype(np.float32)
        pairs = kind_of(of) == "differential"
        stored = cache_formats.stored_pairs if pairs and value.name.endswith(".v") else cache_formats.stored
        return stored(rows, self.kv_cache).astype(np.float32)

    def _make_room(self, state: State, new: int) -> None:
        """Room for so many ids more. A text that rotates otherwise from there on is read again."""
        if state.length + new > self.max_context:
            raise UserError(
                f"The model's context holds {self.max_context} ids, and this text has "
                f"{state.length + new}: shorten it"
            )
        if not state.fits(new):
            ids = state.restart(new)
            for start in range(0, len(ids), CHUNK):
                self._read([ids[start : start + CHUNK]], [state], [], None, ())
        state.reserve(state.length + new)
