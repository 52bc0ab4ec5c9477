"""One step of the runtime in numpy: native/runtime/step.cpp to be read, and the engine without the core.

    x = embedding[id]
    for each block:  x += out(attention(rotated q, k, v of norm(x)));  x += down(act(gate) up of norm(x))
    logits = head(norm(x))

Blocks that read x in parallel, norm after their halves or multiply what they add do so as
model/block_config.py says. The mixers of a block are in reference_attention.py, MLPs and norms in
numpy_layers.py, what is kept of a text in reference_state.py. Packed matrices read 8-bit vectors (matmul.py),
all between is float32; an adapter adds B (A x) of the vectors before rounding (adapter.py). Every sum has the
native step's order and every product its rounding (arithmetic.py): the logits are the native step's, to the
bit."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.layers.config import MoE
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.position import learned
from cutaway.quantization import formats
from cutaway.runtime import block_numbers, cache_formats, head, matmul, supported
from cutaway.runtime.activation_functions import ACTIVATIONS
from cutaway.runtime.adapter import Beside, prepared
from cutaway.runtime.edits import Edit
from cutaway.runtime.reference_attention import Mixers
from cutaway.runtime.reference_state import State, watcher
from cutaway.runtime.values import LOGITS, LOOKS, Values, named
from cutaway.weights.changes import Adapter
from cutaway.weights.named_tensors import Tensors

CHUNK = 128  # tokens read at once


class ReferenceEngine:
    """A model on packed weights in numpy, slow and readable. Raises UserError for one that the step does not
    know.
    """

    def __init__(self, config: Decoder, tensors: Tensors, kv_cache: cache_formats.Kind = "F16") -> None:
        cache_formats.check(kv_cache)
        reason = supported.unsupported_reason(config, tensors)
        if reason is not None:
            raise UserError(f"The runtime does not run this model, because {reason}: use engine='pytorch'")
        self.config = config
        self.tensors = tensors
        self.vocab = config.vocab
        self.max_context = config.context
        self._adapter: Mapping[str, Beside] | None = None
        self.kv_cache: cache_formats.Kind = kv_cache
        self._layers = Mixers(tensors, kv_cache)

    def new_state(self) -> State:
        return State(self.config, self._adapter, self.kv_cache)

    def edited_state(self, edits: Sequence[Edit], kept: Sequence[Any] = ()) -> State:
        """An empty state whose residual stream is edited, as ``RuntimeEngine.edited_state`` gives one."""
        assert not kept, "this engine shares no pages"
        state = self.new_state()
        state.edits = tuple(edits)
        return state

    def first_layers(self, count: int) -> ReferenceEngine:
        """The same engine with its first layers alone."""
        view = copy.copy(self)
        view.config = replace(self.config, blocks=self.config.blocks[:count])
        return view

    def observe(
        self,
        texts: Sequence[Sequence[int]],
        states: Sequence[State],
        names: Sequence[str],
        logits_at: Sequence[int] = (),
    ) -> tuple[np.ndarray, Values]:
        """Reads ids of each text into its state, and gives values, as ``RuntimeEngine.observe`` does."""
        wanted = named(self.config, tuple(names))
        kept: list[dict[str, Any]] = []
        ends = []
        for text, state in zip(texts, states, strict=True):
            kept.append(dict.fromkeys(one.name for one in wanted))
            ends.append(self._read(text, state, kept[-1]))
        end = np.concatenate(ends)
        found: Values = {}
        for one in wanted:
            if one.what == LOGITS:
                found[one.name] = self._head(end)
            elif one.name.endswith(tuple(LOOKS)):
                found[one.name] = [row for part in kept for row in part[one.name]]
            else:
                found[one.name] = np.concatenate([part[one.name] for part in kept])
        return self._head(end[list(logits_at)]), found

    def adapted(self, adapter: Adapter | None) -> ReferenceEngine:
        """This engine with an adapter beside its weights, as ``RuntimeEngine.adapted`` gives one."""
        view = copy.copy(self)
        view._adapter = None if adapter is None else prepared(self.config, self.tensors, adapter)
        return view

    def prefill(self, ids: Sequence[int], state: State) -> np.ndarray:
        """Reads ids after what the state holds; float32 [v], the logits of what comes next."""
        if not ids:
            raise ValueError("an engine reads at least one id")
        x = np.empty((0, self.config.width), np.float32)
        state.announced = state.length + len(ids)
        for start in range(0, len(ids), CHUNK):
            x = self._read(ids[start : start + CHUNK], state)
        return self._head(x[-1:])[0]

    def step(self, id: int, state: State) -> np.ndarray:
        """Reads one id; float32 [v]."""
        return self._head(self._read([id], state))[0]

    def step_each(self, ids: Sequence[int], states: Sequence[State]) -> np.ndarray:
        """Reads one id of each of several texts: float32 [b v]."""
        return np.stack([self.step(id, state) for id, state in zip(ids, states, strict=True)])

    def prefill_all_logits(self, ids: Sequence[int], state: State) -> np.ndarray:
        """Reads ids after what the state holds: float32 [k v], the logits of what comes after each."""
        state.announced = state.length + len(ids)
        chunks = [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
        return np.concatenate([self._head(self._read(chunk, state)) for chunk in chunks])

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """float32 [t v]: at each position, the logits of what comes next."""
        return self.prefill_all_logits(ids, self.new_state())

    def _read(self, ids: Sequence[int], state: State, kept: dict[str, Any] | None = None) -> np.ndarray:
        """float32 [t d]: the residual stream after the last block; keys and values are in the state.

        ``kept`` receives every value by its name, and those patterns whose names it holds.
        """
        kept = {} if kept is None else kept
        if state.length + len(ids) > self.max_context:
            raise UserError(
                f"The model's context holds {self.max_context} ids, and this text has "
                f"{state.length + len(ids)}: shorten it"
            )
        if min(ids) < 0 or max(ids) >= self.vocab:
            raise UserError(f"An id is outside the model's 0 to {self.vocab - 1}.")
        earlier = state.restart(len(ids))
        for start in range(0, len(earlier), CHUNK):
            self._read(earlier[start : start + CHUNK], state)
        table = self.tensors["embedding.weight"]
        x = formats.unpack(table.rows(np.asarray(ids))) * np.float32(self.config.embedding_scale)
        positions = np.arange(state.length, state.length + len(ids))
        if isinstance(self.config.position, learned.Config):
            x = x + self._layers.vector("position.weight")[positions + self.config.position.offset]
        x = self._layers.norm(x, "embedding_norm", self.config.embedding_norm)
        x = watcher(state, 0, kept)("embed", x)
        own = self._per_layer(ids, x) if self.config.per_layer else None
        for n, block in enumerate(self.config.blocks):
            path, see = f"blocks.{n}", watcher(state, n, kept, came=x)
            residual = np.float32(block.residual)
            normed = see("attention_norm", self._block_norm(block, x, path, "attention_norm"))
            out = self._layers.mixed(block, n, normed, positions, state, kept)
            out = see("attention_post_norm", self._block_norm(block, out, path, "attention_post_norm"))
            middle = see("middle", x + out * residual)
            if block.mlp is None:
                x = middle
            elif block.parallel != "shared":
                read = x if block.parallel else middle
                normed = see("mlp_norm", self._block_norm(block, read, path, "mlp_norm"))
            if block.mlp is not None:
                apply: Any = self._layers.mixture if isinstance(block.mlp, MoE) else self._layers.mlp
                out = apply(block.mlp, f"{path}.mlp", normed, state.adapter, see)
                out = see("mlp_post_norm", self._block_norm(block, out, path, "mlp_post_norm"))
                x = middle + out * residual
            x = x if own is None else self._with_own(block, f"{path}.per_layer", x, own[:, n])
            x = x * self._layers.vector(f"{path}.scale") if block.scaled else x
            x = see("out", x)
        kept["norm"] = self._layers.norm(x, "norm", self.config.norm)
        state.length += len(ids)
        if state.first_length is not None:
            state.ids = [*state.ids, *ids]
        return x

    def _per_layer(self, ids: Sequence[int], x: np.ndarray) -> np.ndarray:
        """float32 [t n p]: the embeddings that each block has of the tokens, whose own are x [t d]."""
        of = self.config.per_layer
        assert of is not None
        by, projected_by, both_by = map(np.float32, block_numbers.per_layer_scales(self.config))
        table = self.tensors["per_layer.embedding.weight"]
        rows = formats.unpack(table.rows(np.asarray(ids))).reshape(len(ids), -1, of.size)
        projected = self._layers.matrix("per_layer.projection", x) * projected_by
        projected = self._layers.norm(projected.reshape(rows.shape), "per_layer.norm", self.config.norm)
        return (projected + rows * by) * both_by

    def _with_own(self, block: Block, path: str, x: np.ndarray, own: np.ndarray) -> np.ndarray:
        """x with what a block adds of its own embeddings [t p]."""
        assert block.mlp is not None
        gated = ACTIVATIONS[block.mlp.activation](self._layers.matrix(f"{path}.gate", x)) * own
        out = self._layers.matrix(f"{path}.out", gated)
        return x + self._layers.norm(out, f"{path}.norm", block.norm)

    def _head(self, x: np.ndarray) -> np.ndarray:
        """float32 [t v] of the residual stream [t d]."""
        return head.unembed(self.config, self.tensors, x, self.head_product)

    def head_product(self, x: np.ndarray) -> np.ndarray:
        """float32 [n v]: the head's matrix times vectors [n d]."""
        name = "embedding" if self.config.tied else "head"
        return matmul.head_product(self.tensors[f"{name}.weight"], x)

    def _block_norm(self, block: Block, x: np.ndarray, path: str, name: str) -> np.ndarray:
        return self._layers.norm(x, f"{path}.{name}", block.norm if name in block.norms else None)
