"""The PyTorch model as an engine: ids in, the next token's logits out, as numpy arrays.

Generation, serving and evaluation use this protocol (``generate/engine.py``) and do not know which engine
they hold. A matrix product of another shape rounds otherwise. So a prompt is always cut at the same
positions, and each of several texts is read by itself: its logits do not depend on the others, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from cutaway.attention.common.mixer import LayerState
from cutaway.attention.state.caches import Full
from cutaway.attention.state.paged import Paged, Pool
from cutaway.hooks import Listener, tracing
from cutaway.model import inside
from cutaway.model.decoder import Decoder, State
from cutaway.model.nan import check_weights, nan_error

CHUNK = 512  # tokens read at once: bounds what a long prompt needs beside its state


class PyTorchEngine:
    """A Decoder on whatever device it is on, one sequence a state."""

    scope = b""

    def __init__(self, model: Decoder) -> None:
        self.model = model.eval()
        check_weights(model)
        self.vocab = model.config.vocab
        self.max_context = model.config.context
        weight = next(iter(model.parameters()))
        self.device = weight.device
        self.layers = len(model.blocks)
        self.page = self.grid = CHUNK
        self.page_bytes = CHUNK * model.config.bytes_per_token(weight.element_size())
        size = sum(one.numel() for one in model.parameters()) * weight.element_size()
        self.weights_in_positions = size * CHUNK // max(1, self.page_bytes)
        self._pools = [Pool(CHUNK) for _ in model.config.blocks]

    def new_state(self) -> State:
        return self.model.new_state()

    def edited_state(self, edit: Callable[[int], Mapping[str, Listener]], kept: Sequence[Any] = ()) -> State:
        """A state, which holds no pages, whose every forward pass is edited: ``edit(position)`` gives its
        listeners.
        """
        assert not kept
        state = self.new_state()
        state.edit = edit
        return state

    @staticmethod
    def edits_begin(edit: Callable[[int], Mapping[str, Listener]]) -> int:
        """The first position that an edit may change: listeners do not say."""
        return 0

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], state: State) -> np.ndarray:
        """Reads ids after what the state holds; float32 [v], the logits of what comes next."""
        if not ids:
            raise ValueError("an engine reads at least one id")
        return self.read([ids], [state], [len(ids) - 1])[0]

    def step(self, id: int, state: State) -> np.ndarray:
        """Reads one id; float32 [v]."""
        return self.prefill([id], state)

    @torch.inference_mode()
    def prefill_all_logits(self, ids: Sequence[int], state: State) -> np.ndarray:
        """Reads ids after what the state holds: float32 [k v], the logits of what comes after each."""
        starts = range(0, len(ids), CHUNK)
        return np.concatenate([self._read(ids[at : at + CHUNK], state, last=False) for at in starts])

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """float32 [t v]: at each position, the logits of what comes next."""
        return self._read(ids, None, last=False)

    def read(
        self, texts: Sequence[Sequence[int]], states: Sequence[State], logits_at: Sequence[int]
    ) -> np.ndarray:
        """Reads some ids of each text, each into its own state: float32 [n v].

        The logits are those after the ids at the indices ``logits_at`` among all ids.
        """
        return self.watch(texts, states, logits_at, [self.layers - 1] * len(logits_at), [])[0]

    def watch(
        self,
        texts: Sequence[Sequence[int]],
        states: Sequence[State],
        logits_at: Sequence[int],
        after: Sequence[int],
        attention_at: Sequence[tuple[int, ...]],
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Reads as ``read`` does, and looks inside.

        Returns the logits after the layers ``after``, one for each of ``logits_at`` (the logit lens), and the
        attention weights float32 [h s] of each (index, layer) in ``attention_at``. Raises UserError for a
        mechanism without such weights.
        """
        return self.watch_values(texts, states, logits_at, after, attention_at, [])[:2]

    @torch.inference_mode()
    def watch_values(
        self,
        texts: Sequence[Sequence[int]],
        states: Sequence[State],
        logits_at: Sequence[int],
        after: Sequence[int],
        attention_at: Sequence[tuple[int, ...]],
        names: Sequence[str],
    ) -> tuple[np.ndarray, list[np.ndarray], dict[str, np.ndarray]]:
        """Reads as ``watch`` does, and gives values of the ids by name: float32 [n ...], no patterns.

        An (index, layer, 0 or 1) in ``attention_at`` asks for the weights or the scores of this very pass, as
        edits left them; it attends by the backend that holds them in memory.
        """
        logits: dict[tuple[int, int], np.ndarray] = {}
        patterns: dict[tuple[int, ...], np.ndarray] = {}
        seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
        start, rows = 0, list(zip(logits_at, after, strict=True))
        for text, state in zip(texts, states, strict=True):
            for chunk in _chunks(text, state.length):
                here = range(start, start + len(chunk))
                start += len(chunk)
                lenses = [(at - here.start, layer) for at, layer in rows if at in here]
                looks = [(one[0] - here.start, *one[1:]) for one in attention_at if one[0] in here]
                with inside.watching(self.model, lenses, looks, state, names) as found:
                    finals = {at for at, layer in lenses if layer == self.layers - 1}
                    rows_of = self._read(chunk, state, last=finals <= {len(chunk) - 1})
                for at, layer in lenses:
                    row = rows_of[at - len(chunk)] if layer == self.layers - 1 else found.lens(at, layer)
                    logits[at + here.start, layer] = row
                for at, *look in looks:
                    patterns[at + here.start, *look] = found.pattern(at, *look)
                for name in names:
                    seen[name].append(found.rows(name, len(chunk)))
        none = np.empty((0, self.vocab), np.float32)
        found_logits = np.stack([logits[row] for row in rows]) if rows else none
        values = {name: np.concatenate(parts) for name, parts in seen.items()}
        return found_logits, [patterns[one] for one in attention_at], values

    def keep(self, state: State, page: int) -> State:
        """The state as it is at the end of its last page, for others to continue."""
        if state.length != (page + 1) * CHUNK:
            raise ValueError(f"a state of {state.length} ids does not end with its page {page}")
        return state.snapshot()

    def fork(self, state: State) -> State:
        """Another state that holds what this one does."""
        return state.snapshot()

    def resume(self, kept: Sequence[State]) -> State:
        """A state that holds what the last of these holds.

        Layers that keep every token do so in pages, which texts that begin alike share.
        """
        if kept:
            return kept[-1].snapshot()
        blocks = self.model.new_state().blocks
        return State([_paged(block, pool) for block, pool in zip(blocks, self._pools, strict=True)])

    def _read(self, ids: Sequence[int], state: State | None, last: bool) -> np.ndarray:
        start = 0 if state is None else state.length
        row = torch.tensor([list(ids)], dtype=torch.long, device=self.device)
        pos = torch.arange(start, start + len(ids), device=self.device)[None]
        edit = None if state is None or state.edit is None else state.edit(start)
        with tracing(self.model, edit=edit) if edit else nullcontext():
            logits = self.model(row, pos, state, last=last)[0].float().cpu().numpy()
        if np.isnan(logits.max()):
            raise nan_error(self.model, lambda: self.model(row, pos))
        return logits


def _paged(state: LayerState, pool: Pool) -> LayerState:
    return Paged(pool) if isinstance(state, Full) else state


def _chunks(ids: Sequence[int], start: int) -> Iterator[Sequence[int]]:
    """The ids after position `start`, cut where the position is a multiple of the chunk."""
    while ids:
        length = CHUNK - start % CHUNK
        yield ids[:length]
        ids, start = ids[length:], start + length
