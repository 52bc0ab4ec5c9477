"""One step of the runtime in numpy: native/runtime/step.cpp to be read, and the engine where the core is
absent.

    x = embedding[id]
    for each block:  x += out(attention(rotated q, k, v of norm(x)));  x += down(act(gate) up of norm(x))
    logits = head(norm(x))

In a mixture of experts a token passes the MLPs that its router picks; their outputs are added up by weight.
Packed matrices read 8-bit vectors (matmul.py), keys and values are kept as halves, everything between is
float32; an adapter adds B (A x) of the vectors before rounding (adapter.py). Every sum has the native step's
order and every product its rounding (arithmetic.py): the logits are the native step's, to the bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cutaway.attention import local
from cutaway.errors import UserError
from cutaway.layers.config import MLP, MoE
from cutaway.model.config import Block, Decoder
from cutaway.position import rope
from cutaway.runtime import arithmetic, attention, matmul, packing
from cutaway.runtime.adapter import Beside, prepared
from cutaway.runtime.values import Edit, Values, named
from cutaway.weights import quant
from cutaway.weights.adapters import Adapter
from cutaway.weights.rules import Tensors

CHUNK = 128  # tokens read at once


class State:
    """The KV cache of one text: keys and values of every layer, float16 [s g size]."""

    def __init__(self, config: Decoder, adapter: Mapping[str, Beside] | None = None) -> None:
        self.adapter = adapter or {}
        self.edits: tuple[Edit, ...] = ()  # of every token that is read into it
        shapes = [(block.attention.groups, block.attention.key_size) for block in config.blocks]
        sizes = [block.attention.values for block in config.blocks]
        self.keys = [np.empty((0, *shape), np.float16) for shape in shapes]
        self.values = [
            np.empty((0, groups, size), np.float16) for (groups, _), size in zip(shapes, sizes, strict=True)
        ]
        self.length = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(part.nbytes for part in (*self.keys, *self.values))

    def truncate(self, length: int) -> None:
        """Forgets everything after the first ``length`` positions."""
        self.length = min(length, self.length)
        self.keys = [part[: self.length] for part in self.keys]
        self.values = [part[: self.length] for part in self.values]

    def snapshot(self) -> State:
        """A copy that what is read later does not touch."""
        other = copy.copy(self)
        other.keys, other.values = list(self.keys), list(self.values)
        return other


class ReferenceEngine:
    """A model on packed weights in numpy, slow and readable. Raises UserError for one that the step does not
    know.
    """

    def __init__(self, config: Decoder, tensors: Tensors) -> None:
        reason = packing.why_not(config, tensors)
        if reason is not None:
            raise UserError(f"The runtime does not run this model, because {reason}: use engine='definition'")
        self.config = config
        self.tensors = tensors
        self.vocab = config.vocab
        self.max_context = config.context
        self._adapter: Mapping[str, Beside] | None = None

    def new_state(self) -> State:
        return State(self.config, self._adapter)

    def edited_state(self, edits: Sequence[Edit]) -> State:
        """An empty state whose residual stream is edited, as ``RuntimeEngine.edited_state`` gives one."""
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
        logits = self._head(np.concatenate(ends)[list(logits_at)])
        join = {True: lambda parts: [row for part in parts for row in part], False: np.concatenate}
        return logits, {one.name: join[one.what < 0]([part[one.name] for part in kept]) for one in wanted}

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
        table = self.tensors["embedding.weight"]
        x = quant.unpack(table.rows(np.asarray(ids))) * np.float32(self.config.embedding_scale)
        positions = np.arange(state.length, state.length + len(ids))
        kept["embed"] = x
        for n, block in enumerate(self.config.blocks):
            path = f"blocks.{n}"
            out = self._attention(
                block, n, self._norm(x, f"{path}.attention_norm", block.norm.eps), positions, state, kept
            )
            x = kept[f"{path}.middle"] = x + self._post(block, out, f"{path}.attention_post_norm")
            normed = self._norm(x, f"{path}.mlp_norm", block.norm.eps)
            apply: Any = self._mixture if isinstance(block.mlp, MoE) else self._mlp
            out = apply(block.mlp, f"{path}.mlp", normed, state.adapter)
            x = x + self._post(block, out, f"{path}.mlp_post_norm")
            for edit in state.edits:
                x = edit.applied(x, state.length) if edit.layer == n else x
            kept[f"{path}.out"] = x
        state.length += len(ids)
        return x

    def _attention(
        self,
        block: Block,
        n: int,
        x: np.ndarray,
        positions: np.ndarray,
        state: State,
        kept: dict[str, Any],
    ) -> np.ndarray:
        of: Any = block.attention
        path, tokens = f"blocks.{n}.attention", len(x)
        query = self._matrix(f"{path}.query", x, state.adapter).reshape(tokens, of.heads, of.key_size)
        key = self._matrix(f"{path}.key", x, state.adapter).reshape(tokens, of.groups, of.key_size)
        value = self._matrix(f"{path}.value", x, state.adapter).reshape(tokens, of.groups, of.values)
        if of.qk_norm:
            query = self._norm(query, f"{path}.query_norm", of.qk_norm.eps)
            key = self._norm(key, f"{path}.key_norm", of.qk_norm.eps)
        if of.position is not None:
            query, key = rotated(query, positions, of.position), rotated(key, positions, of.position)
        key, value = key.astype(np.float16), value.astype(np.float16)
        state.keys[n] = np.concatenate([state.keys[n], key])
        state.values[n] = np.concatenate([state.values[n], value])
        scaled = query * np.float32(of.key_size**-0.5 if of.scale is None else of.scale)
        seen = (of.window if isinstance(of, local.Config) else None, of.softcap)
        mixed = attention.attend(scaled, state.keys[n], state.values[n], positions, *seen)
        halves = {"k": key.astype(np.float32), "v": value.astype(np.float32)}
        if f"{path}.pattern" in kept:
            kept[f"{path}.pattern"] = attention.patterns(scaled, state.keys[n], positions, *seen)
        kept |= {f"{path}.{name}": each for name, each in {"q": query, "z": mixed, **halves}.items()}
        return self._matrix(f"{path}.out", mixed.reshape(tokens, -1), state.adapter)

    def _mlp(self, of: MLP, path: str, x: np.ndarray, adapter: Mapping[str, Beside]) -> np.ndarray:
        hidden = self._matrix(f"{path}.up", x, adapter)
        act = ACTIVATIONS[of.activation]
        hidden = act(self._matrix(f"{path}.gate", x, adapter)) * hidden if of.gated else act(hidden)
        return self._matrix(f"{path}.down", hidden, adapter)

    def _mixture(self, of: MoE, path: str, x: np.ndarray, adapter: Mapping[str, Beside]) -> np.ndarray:
        scores = self._matrix(f"{path}.router", x, adapter)
        probabilities = arithmetic.exp(scores - scores.max(axis=1, keepdims=True))
        probabilities /= _in_order(probabilities)
        chosen = np.argsort(-probabilities, axis=1, kind="stable")[:, : of.top_k]  # first of equals first
        weights = np.take_along_axis(probabilities, chosen, axis=1)
        if of.normalised:
            weights /= _in_order(weights)
        out = np.zeros_like(x)
        if of.common is not None:
            out += self._mlp(of.common, f"{path}.shared", x, adapter)
        if of.shared_gate:
            gate = self._matrix(f"{path}.shared_gate", x, adapter)
            out *= np.float32(1) / (np.float32(1) + arithmetic.exp(-gate))
        for rank in range(of.top_k):
            for e in np.unique(chosen[:, rank]).tolist():
                of_e = chosen[:, rank] == e
                expert_out = self._mlp(of.expert, f"{path}.experts.{e}", x[of_e], adapter)
                out[of_e] += weights[of_e, rank, None] * expert_out
        return out

    def _head(self, x: np.ndarray) -> np.ndarray:
        """float32 [t v] of the residual stream [t d]."""
        name = "embedding" if self.config.tied else "head"
        scores = matmul.head_product(
            self.tensors[f"{name}.weight"], self._norm(x, "norm", self.config.norm.eps)
        )
        return arithmetic.softcapped(scores, self.config.softcap)

    def _matrix(self, path: str, x: np.ndarray, adapter: Mapping[str, Beside]) -> np.ndarray:
        out = matmul.product(packing.as_it_runs(f"{path}.weight", self.tensors), x)
        if path in adapter:
            out = adapter[path].applied(out, x)
        bias = f"{path}.bias"
        return out + quant.unpack(self.tensors[bias]) if bias in self.tensors else out

    def _norm(self, x: np.ndarray, path: str, eps: float) -> np.ndarray:
        return arithmetic.rms_norm(x, self._vector(f"{path}.weight"), eps)

    def _post(self, block: Block, out: np.ndarray, path: str) -> np.ndarray:
        return self._norm(out, path, block.norm.eps) if block.post_norm else out

    def _vector(self, name: str) -> np.ndarray:
        return quant.unpack(self.tensors[name])


def rotated(x: np.ndarray, positions: np.ndarray, by: rope.Config) -> np.ndarray:
    """Heads [t h k] at ``positions`` [t], their leading dimensions rotated pair by pair."""
    angles = positions[:, None] * by.frequencies()
    cos, sin = (
        (np.asarray(side(angles)) * by.magnitude).astype(np.float32)[:, None] for side in (np.cos, np.sin)
    )
    pairs = cos.shape[-1]
    first, second = (
        (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
        if by.interleaved
        else (slice(0, pairs), slice(pairs, 2 * pairs))
    )
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


def _in_order(x: np.ndarray) -> np.ndarray:
    """The sum of each row, one number after another: float32 [t 1] of [t n]."""
    return np.add.accumulate(x, axis=1)[:, -1:]


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (np.float32(1) + arithmetic.exponential(-x))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    """x/2 (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3)."""
    u = x * arithmetic.fma(x * x, np.float32(0.044715), np.float32(1))
    return x / (np.float32(1) + arithmetic.exponential(u * np.float32(-1.5957691216)))


def _gelu(x: np.ndarray) -> np.ndarray:
    erf = np.vectorize(math.erf, otypes=[np.float32])
    return x * (np.float32(0.5) * (np.float32(1) + erf(x * np.float32(0.70710678))))


ACTIVATIONS = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "relu": lambda x: np.maximum(x, np.float32(0)),
}
