"""One step of the runtime in numpy: native/runtime/step.cpp to be read, and the engine where the core is
absent.

    x = embedding[id]
    for each block:  x += out(attention(rotated q, k, v of norm(x)));  x += down(act(gate) up of norm(x))
    logits = head(norm(x))

Blocks that read x in parallel, norm after their halves or multiply what they add do so as model/config.py
says. In a mixture of experts a token passes the MLPs that its router picks; their outputs are added up by
weight.
Packed matrices read 8-bit vectors (matmul.py), keys and values are kept as cache.py says, all between is
float32; an adapter adds B (A x) of the vectors before rounding (adapter.py). Every sum has the native step's
order and every product its rounding (arithmetic.py): the logits are the native step's, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np

from cutaway.errors import UserError
from cutaway.gguf import Packed
from cutaway.layers.config import MLP, MoE, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of
from cutaway.position import learned, rope
from cutaway.position.scaling import LongRoPE
from cutaway.quantization import formats
from cutaway.runtime import arithmetic, attention, cache, head, matmul, packed, packing, recurrence
from cutaway.runtime.adapter import Beside, prepared
from cutaway.runtime.edits import Edit, reweighed
from cutaway.runtime.values import LOGITS, LOOKS, PATTERN, Values, named
from cutaway.weights.changes import Adapter
from cutaway.weights.rules import Tensors

CHUNK = 128  # tokens read at once


class State:
    """The KV cache of one text: keys and values of every layer as they are read back, [s g size]."""

    def __init__(
        self, config: Decoder, adapter: Mapping[str, Beside] | None = None, kind: cache.Kind = "F16"
    ) -> None:
        self.adapter = adapter or {}
        dtype = np.float16 if kind == "F16" else np.float32
        self.edits: tuple[Edit, ...] = ()  # of every token that is read into it
        shapes = [_cached(block) for block in config.blocks]
        self.keys = [np.empty((0, groups, size), dtype) for groups, size, _ in shapes]
        self.values = [np.empty((0, groups, size), dtype) for groups, _, size in shapes]
        self._recurrent = {
            path: of
            for n, block in enumerate(config.blocks)
            for path, of in recurrences(f"blocks.{n}", block).items()
        }
        self.length = 0
        self.first_length = packing.first_length(config)
        # Where a longer text rotates otherwise (LongRoPE): what was read, to be read again, the length that
        # is announced, and whether it is longer.
        self.ids: list[int] = []
        self.announced, self.longer = 0, False
        self._forget()

    def _forget(self) -> None:
        """Recurrent layers as they are before a text."""
        self.carried = {path: recurrence.empty(of, kind_of(of)) for path, of in self._recurrent.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(part.nbytes for part in (*self.keys, *self.values))

    def truncate(self, length: int) -> None:
        """Forgets everything after the first ``length`` positions."""
        self.length = emptied(min(length, self.length), self.length, bool(self.carried))
        if self.length == 0:
            self._forget()
        self.ids, self.announced = self.ids[: self.length], self.length
        self.keys = [part[: self.length] for part in self.keys]
        self.values = [part[: self.length] for part in self.values]

    def restart(self, new: int) -> list[int]:
        """Becomes empty if it will rotate otherwise with so many ids more; gives what it then held."""
        longest = max(self.length + new, self.announced)
        longer = self.first_length is not None and longest > self.first_length
        if longer == self.longer:
            return []
        ids = self.ids
        self.truncate(0)
        self.announced, self.longer = longest, longer
        return ids

    def snapshot(self) -> State:
        """A copy that what is read later does not touch."""
        other = copy.copy(self)
        other.keys, other.values, other.carried = list(self.keys), list(self.values), dict(self.carried)
        other.ids = list(self.ids)
        return other


def _cached(block: Block) -> tuple[int, int, int]:
    """Groups of what a layer caches of a token, and the sizes of their keys and values."""
    of: Any = block.attention
    if packing.latent(block):
        return 1, packing.latent_row(of), of.index_size if packing.indexed(of) else 0
    return (of.groups, of.key_size, of.values) if packing.attends(block) else (0, 0, 0)


def emptied(length: int, held: int, recurrent: bool) -> int:
    """The length to which a state of ``held`` tokens returns; UserError where recurrent layers moved on."""
    if recurrent and length not in (0, held):
        raise UserError(f"the state no longer holds the first {length} tokens: read the text again")
    return length


def recurrences(path: str, block: Block) -> dict[str, Any]:
    """A block's recurrent mixers by their paths."""
    attends = packing.attends(block) or packing.latent(block)
    own = {} if attends else {f"{path}.attention": block.attention}
    return own | ({f"{path}.beside": block.beside.mixer} if block.beside else {})


See = Callable[[str, np.ndarray], np.ndarray]  # of a value by its name: the value as edits leave it


class ReferenceEngine:
    """A model on packed weights in numpy, slow and readable. Raises UserError for one that the step does not
    know.
    """

    def __init__(self, config: Decoder, tensors: Tensors, kv_cache: cache.Kind = "F16") -> None:
        cache.check(kv_cache)
        reason = packing.unsupported_reason(config, tensors)
        if reason is not None:
            raise UserError(f"The runtime does not run this model, because {reason}: use engine='pytorch'")
        self.config = config
        self.tensors = tensors
        self.vocab = config.vocab
        self.max_context = config.context
        self._adapter: Mapping[str, Beside] | None = None
        self.kv_cache: cache.Kind = kv_cache

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
            x = x + self._vector("position.weight")[positions + self.config.position.offset]
        x = self._seen(state, 0, kept)("embed", self._norm(x, "embedding_norm", self.config.embedding_norm))
        own = self._per_layer(ids, x) if self.config.per_layer else None
        for n, block in enumerate(self.config.blocks):
            path, see = f"blocks.{n}", self._seen(state, n, kept, came=x)
            residual = np.float32(block.residual)
            normed = see("attention_norm", self._block_norm(block, x, path, "attention_norm"))
            out = self._mixed(block, n, normed, positions, state, kept)
            out = see("attention_post_norm", self._block_norm(block, out, path, "attention_post_norm"))
            middle = see("middle", x + out * residual)
            if block.mlp is None:
                x = middle
            elif block.parallel != "shared":
                read = x if block.parallel else middle
                normed = see("mlp_norm", self._block_norm(block, read, path, "mlp_norm"))
            if block.mlp is not None:
                apply: Any = self._mixture if isinstance(block.mlp, MoE) else self._mlp
                out = apply(block.mlp, f"{path}.mlp", normed, state.adapter, see)
                out = see("mlp_post_norm", self._block_norm(block, out, path, "mlp_post_norm"))
                x = middle + out * residual
            x = x if own is None else self._with_own(block, f"{path}.per_layer", x, own[:, n])
            x = x * self._vector(f"{path}.scale") if block.scaled else x
            x = see("out", x)
        kept["norm"] = self._norm(x, "norm", self.config.norm)
        state.length += len(ids)
        if state.first_length is not None:
            state.ids = [*state.ids, *ids]
        return x

    def _seen(self, state: State, n: int, kept: dict[str, Any], came: np.ndarray | None = None) -> See:
        """What a value of layer n, whose input ``came``, passes: its edits in their order; it is kept."""

        def see(what: str, value: np.ndarray) -> np.ndarray:
            for edit in state.edits:
                if (edit.what, edit.layer) == (what, n):
                    value = edit.applied(value, state.length, came)
            kept[what if what == "embed" else f"blocks.{n}.{what}"] = value
            return value

        return see

    def _per_layer(self, ids: Sequence[int], x: np.ndarray) -> np.ndarray:
        """float32 [t n p]: the embeddings that each block has of the tokens, whose own are x [t d]."""
        of = self.config.per_layer
        assert of is not None
        by, projected_by, both_by = map(np.float32, packing.per_layer_scales(self.config))
        table = self.tensors["per_layer.embedding.weight"]
        rows = formats.unpack(table.rows(np.asarray(ids))).reshape(len(ids), -1, of.size)
        projected = self._matrix("per_layer.projection", x, {}) * projected_by
        projected = self._norm(projected.reshape(rows.shape), "per_layer.norm", self.config.norm)
        return (projected + rows * by) * both_by

    def _with_own(self, block: Block, path: str, x: np.ndarray, own: np.ndarray) -> np.ndarray:
        """x with what a block adds of its own embeddings [t p]."""
        assert block.mlp is not None
        gated = ACTIVATIONS[block.mlp.activation](self._matrix(f"{path}.gate", x, {})) * own
        return x + self._norm(self._matrix(f"{path}.out", gated, {}), f"{path}.norm", block.norm)

    def _mixed(
        self,
        block: Block,
        n: int,
        x: np.ndarray,
        positions: np.ndarray,
        state: State,
        kept: dict[str, Any],
    ) -> np.ndarray:
        """What a block's mixers give, multiplied and added where there are two."""
        see = self._seen(state, n, kept)
        outs = [self._attention(block, n, x, positions, state, kept)] if packing.attends(block) else []
        if packing.latent(block):
            return self._latent_attention(block, n, x, positions, state, kept)
        for path, of in recurrences(f"blocks.{n}", block).items():
            factor = block.beside.inputs[1] if block.beside else 1.0

            def projected(
                name: str, by: float, of: np.ndarray | None = None, path: str = path, factor: Any = factor
            ) -> np.ndarray:
                if of is not None:
                    return self._matrix(f"{path}.{name}", of, {}) * np.float32(by)
                return self._matrix(f"{path}.{name}", x, {}, factor) * np.float32(by)

            def learned(name: str, path: str = path) -> np.ndarray:
                return self._vector(f"{path}.{name}")

            mix = partial(recurrence.MIXERS[kind_of(of)], of, learned=learned)
            if f"{path}.state" in kept:
                kept[f"{path}.state"] = _each_state(mix, projected, len(x), state.carried[path])
            rows, state.carried[path] = mix(projected=projected, carried=state.carried[path])
            out = self._matrix(f"{path}.out", rows, {})
            outs.append(out if block.beside else see("attention.out", out))
        if block.beside is None:
            return outs[0]
        return outs[0] * np.float32(block.beside.outputs[0]) + outs[1] * np.float32(block.beside.outputs[1])

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
        factor = block.beside.inputs[0] if block.beside else 1.0
        path, tokens = f"blocks.{n}.attention", len(x)
        query = self._rows(of, f"{path}.query", x, state.adapter, factor).reshape(
            tokens, of.heads, of.key_size
        )
        see = self._seen(state, n, kept)
        query = self._finished(of, path, "query", query, positions, state.longer, see)
        if of.temperature is not None:
            far = np.log1p((positions // of.temperature.original).astype(np.float64))
            query = query * (1 + of.temperature.beta * far).astype(np.float32)[:, None, None]
        query = see("attention.q", query)
        halves = {}
        if of.kv_layer is None:
            key = self._rows(of, f"{path}.key", x, state.adapter, factor)
            value = key if of.value_of_key else self._rows(of, f"{path}.value", x, state.adapter, factor)
            key = key.reshape(tokens, of.groups, -1)
            key = see("attention.k", self._finished(of, path, "key", key, positions, state.longer, see))
            value = value.reshape(tokens, of.groups, -1)
            value = see("attention.v", self._norm(value, f"{path}.value_norm", of.value_norm))
            stored = cache.stored_pairs if kind_of(of) == "differential" else cache.stored
            key, value = cache.stored(key, self.kv_cache), stored(value, self.kv_cache)
            state.keys[n] = np.concatenate([state.keys[n], key])
            state.values[n] = np.concatenate([state.values[n], value])
            halves = {"k": key.astype(np.float32), "v": value.astype(np.float32)}
        source = n if of.kv_layer is None else of.kv_layer
        scaled = query * np.float32(of.key_size**-0.5 if of.scale is None else of.scale)
        seen = (
            packing.window_of(of),
            of.softcap,
            packing.alibi_of(of) if of.relative else None,
            self._vector(f"{path}.sinks") if of.sinks else None,
        )
        values = state.values[source]
        if kind_of(of) == "differential":  # both halves of the heads read the same pairs of values
            values = np.concatenate([cache.paired(values)] * 2, axis=1)
        mixed = attention.attend(scaled, state.keys[source], values, positions, *seen)
        patterns = partial(attention.patterns, scaled, state.keys[source], positions, *seen)
        self._reattended(state, n, patterns, values, mixed, kept)
        if f"{path}.scores" in kept:
            kept[f"{path}.scores"] = attention.scores(scaled, state.keys[source], positions, *seen[1:3])
        mixed = self._subtracted(of, path, mixed) if kind_of(of) == "differential" else mixed
        mixed = see("attention.z", mixed)
        kept |= {f"{path}.{name}": each for name, each in halves.items()}
        mixed = mixed.reshape(tokens, -1)
        if kind_of(of) in packing.GATED:
            gate = self._matrix(f"{path}.gate", x, {}, factor)
            mixed = mixed * (np.float32(1) / (np.float32(1) + arithmetic.exponential(-gate)))
        return see("attention.out", self._matrix(f"{path}.out", mixed, state.adapter))

    def _reattended(
        self, state: State, n: int, patterns: Any, values: np.ndarray, mixed: np.ndarray, kept: dict[str, Any]
    ) -> None:
        """Gathers anew, into what attention gave [t h v], for heads whose weights are edited; keeps those."""
        name = f"blocks.{n}.{PATTERN}"
        edits = [edit for edit in state.edits if (edit.what, edit.layer) == (PATTERN, n)]
        if not edits and name not in kept:
            return
        kept[name] = patterns()
        for t, weights in enumerate(kept[name] if edits else ()):
            changed = reweighed(edits, weights, state.length + t)
            if changed is None:
                continue
            reached = sorted(
                {
                    head
                    for edit in edits
                    if edit.spans(state.length + t, 1)
                    for head in edit.reached(len(weights))
                }
            )
            mixed[t, reached] = attention.gathered(changed, values[: weights.shape[1]])[reached]
            kept[name][t] = changed

    def _subtracted(self, of: Any, path: str, mixed: np.ndarray) -> np.ndarray:
        """The normed differences [t h/2 2v] of what both halves of the heads gathered [t h 2v]."""
        one, two = np.split(mixed, 2, axis=1)
        factor, kept = map(np.float32, packing.difference(path, of, self.tensors))
        normed = self._norm(one - factor * two, f"{path}.head_norm", packing.difference_norm(of))
        return normed * kept

    def _latent_attention(
        self,
        block: Block,
        n: int,
        x: np.ndarray,
        positions: np.ndarray,
        state: State,
        kept: dict[str, Any],
    ) -> np.ndarray:
        """Latent attention, absorbed: queries move to the latents, and what is read of those to values."""
        of: Any = block.attention
        path, tokens = f"blocks.{n}.attention", len(x)
        row = np.zeros((tokens, 1, packing.latent_row(of)), np.float32)
        beside = row.shape[-1] - -(-of.rope_dim // arithmetic.LANES) * arithmetic.LANES
        down = self._matrix(f"{path}.down", x, {})
        row[:, 0, : of.latent] = self._norm(down[:, : of.latent], f"{path}.latent_norm", of.norm)
        rotation = (positions, of.position, state.longer)
        row[..., beside : beside + of.rope_dim] = rotated(down[:, None, of.latent :], *rotation)
        state.keys[n] = np.concatenate([state.keys[n], cache.stored(row, self.kv_cache)])
        normed = x
        if of.query_latent is not None:
            x = self._norm(self._matrix(f"{path}.query_down", x, {}), f"{path}.query_norm", of.norm)
        chosen = self._chosen(of, n, normed, x, positions, state) if packing.indexed(of) else None
        query = self._matrix(f"{path}.query", x, {}).reshape(tokens, of.heads, -1)
        scale = np.float32(packing.latent_scale(of))
        absorbed = np.zeros((tokens, of.heads, row.shape[-1]), np.float32)
        plain = query[..., : of.key_size] * scale
        absorbed[..., : of.latent] = _each_head(packing.key_up(path, of, self.tensors), plain)
        absorbed[..., beside : beside + of.rope_dim] = rotated(query[..., of.key_size :], *rotation) * scale
        rows = state.keys[n]
        if f"{path}.scores" in kept:
            kept[f"{path}.scores"] = attention.scores(absorbed, rows, positions, latent=True)
        read = attention.attend(absorbed, rows, rows[..., : of.latent], positions, latent=True, chosen=chosen)
        patterns = partial(attention.patterns, absorbed, rows, positions, chosen=chosen, latent=True)
        self._reattended(state, n, patterns, rows[..., : of.latent], read, kept)
        see = self._seen(state, n, kept)
        mixed = see("attention.z", _each_head(self.tensors[f"{path}.value_up.weight"], read))
        return see("attention.out", self._matrix(f"{path}.out", mixed.reshape(tokens, -1), state.adapter))

    def _chosen(
        self, of: Any, n: int, x: np.ndarray, asked: np.ndarray, positions: np.ndarray, state: State
    ) -> np.ndarray:
        """bool [t s]: the keys that an indexer chooses for tokens [t d], whose queries come out of ``asked``.

        It rotates half-split, whatever the model's pairs are; its keys are in the layer's values.
        """
        path = f"blocks.{n}.attention"
        by = of.position and replace(of.position, interleaved=False)
        scale, weight_scale = map(np.float32, packing.index_scales(of))
        key = self._norm(self._matrix(f"{path}.index_key", x, {}), f"{path}.index_norm", packing.INDEX_NORM)
        key = cache.stored(rotated(key[:, None], positions, by, state.longer), self.kv_cache)
        state.values[n] = np.concatenate([state.values[n], key])
        query = self._matrix(f"{path}.index_query", asked, {}).reshape(len(x), of.index_heads, -1)
        query = rotated(query, positions, by, state.longer) * scale
        weights = self._matrix(f"{path}.index_weight", x, {}) * weight_scale
        return attention.choose(query, state.values[n], weights, positions, of.top_k)

    def _rows(
        self, of: Any, path: str, x: np.ndarray, adapter: Mapping[str, Beside], factor: float
    ) -> np.ndarray:
        """Queries, keys or values [t n], bounded where the model does so."""
        rows = self._matrix(path, x, adapter, factor)
        if of.clip is None:
            return rows
        return np.minimum(np.maximum(rows, np.float32(-of.clip)), np.float32(of.clip))

    def _finished(
        self,
        of: Any,
        path: str,
        name: Literal["query", "key"],
        x: np.ndarray,
        positions: np.ndarray,
        longer: bool,
        see: See,
    ) -> np.ndarray:
        """Queries or keys [t h k] normed and rotated."""
        norm = f"{path}.{name}_norm"
        x = x if of.qk_norm_after else self._head_norm(of, norm, x)
        x = see(f"attention.{name[0]}_unrotated", x)
        x = rotated(x, positions, of.position, longer)
        return self._head_norm(of, norm, x) if of.qk_norm_after else x

    def _head_norm(self, of: Any, path: str, x: np.ndarray) -> np.ndarray:
        if of.qk_norm_over == "width":
            return self._norm(x.reshape(len(x), -1), path, of.qk_norm).reshape(x.shape)
        return self._norm(x, path, of.qk_norm)

    def _mlp(
        self,
        of: MLP,
        path: str,
        x: np.ndarray,
        adapter: Mapping[str, Beside],
        see: See = lambda what, value: value,
    ) -> np.ndarray:
        up = self._matrix(f"{path}.up", x, adapter)
        gate = self._matrix(f"{path}.gate", x, adapter) * np.float32(of.gate_scale) if of.gated else up
        if of.limit is not None:
            limit = np.float32(of.limit)
            gate, up = np.minimum(gate, limit), np.minimum(np.maximum(up, -limit), limit) + np.float32(1)
        if of.activation == "xielu":
            active = _xielu(gate, *packed.xielu(self.tensors, path))
        else:
            active = ACTIVATIONS[of.activation](gate)
        hidden = see("mlp.hidden", active * up if of.gated else active)
        return see("mlp.down", self._matrix(f"{path}.down", hidden, adapter)) * np.float32(of.out_scale)

    def _mixture(
        self, of: MoE, path: str, x: np.ndarray, adapter: Mapping[str, Beside], see: See
    ) -> np.ndarray:
        scores = self._matrix(f"{path}.router", x, adapter)
        if of.router.score == "sigmoid":
            scores = np.float32(1) / (np.float32(1) + arithmetic.exp(-scores))
        else:
            scores = arithmetic.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= _in_order(scores)
        merit = scores + self._vector(f"{path}.choice_bias") if of.router.choice_bias else scores
        merit = _open(of, merit) if of.router.groups > 1 else merit
        chosen = np.argsort(-merit, axis=1, kind="stable")[:, : of.top_k]  # first of equals first
        weights = np.take_along_axis(scores, chosen, axis=1)
        if of.normalised:
            weights /= _in_order(weights)
        weights *= np.float32(of.router.scale)
        see("mlp.expert_indices", chosen)
        weights = see("mlp.expert_weights", weights)
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
        return see("mlp.out", out * np.float32(of.out_scale))

    def _head(self, x: np.ndarray) -> np.ndarray:
        """float32 [t v] of the residual stream [t d]."""
        return head.unembed(self.config, self.tensors, x, self.head_product)

    def head_product(self, x: np.ndarray) -> np.ndarray:
        """float32 [n v]: the head's matrix times vectors [n d]."""
        name = "embedding" if self.config.tied else "head"
        return matmul.head_product(self.tensors[f"{name}.weight"], x)

    def _matrix(
        self, path: str, x: np.ndarray, adapter: Mapping[str, Beside], factor: float = 1.0
    ) -> np.ndarray:
        """W (factor x) and the bias."""
        out = matmul.product(packed.as_it_runs(f"{path}.weight", self.tensors), x)
        if path in adapter:
            out = adapter[path].applied(out, x)
        out = out * np.float32(factor)
        bias = f"{path}.bias"
        return out + formats.unpack(self.tensors[bias]) if bias in self.tensors else out

    def _norm(self, x: np.ndarray, path: str, of: Norm | None) -> np.ndarray:
        if of is None:
            return x
        weight = self._vector(f"{path}.weight") if of.weight else np.float32(1)
        if of.kind == "rms":
            return arithmetic.rms_norm(x, weight, of.eps)
        bias = self._vector(f"{path}.bias") if of.weight and of.bias else None
        return arithmetic.layer_norm(x, weight, bias, of.eps)

    def _block_norm(self, block: Block, x: np.ndarray, path: str, name: str) -> np.ndarray:
        return self._norm(x, f"{path}.{name}", block.norm if name in block.norms else None)

    def _vector(self, name: str) -> np.ndarray:
        return formats.unpack(self.tensors[name])


def _each_state(mix: Any, projected: Any, tokens: int, carried: Any) -> np.ndarray:
    """What a recurrence holds after each token, float32 [t h k v]."""
    states = []
    for t in range(tokens):

        def row(name: str, by: float, of: np.ndarray | None = None, t: int = t) -> np.ndarray:
            return projected(name, by, of)[t : t + 1] if of is None else projected(name, by, of)

        carried = mix(projected=row, carried=carried)[1]
        states.append(carried.S)
    return np.stack(states)


def _each_head(packed: Packed, x: np.ndarray) -> np.ndarray:
    """Each head's part of a matrix [h a, b] times its own vectors [t h b]: float32 [t h a]."""
    heads = x.shape[1]
    rows = packed.shape[0] // heads
    parts = [packed.rows(slice(head * rows, (head + 1) * rows)) for head in range(heads)]
    return np.stack([matmul.product(part, x[:, head]) for head, part in enumerate(parts)], axis=1)


def rotated(x: np.ndarray, positions: np.ndarray, by: rope.Config | None, longer: bool = False) -> np.ndarray:
    """Heads [t h k] at ``positions`` [t], their leading dimensions rotated pair by pair; ``longer``: of a
    text past LongRoPE's first lengths.
    """
    if by is None:
        return x
    long = by.scaling.original + 1 if longer and isinstance(by.scaling, LongRoPE) else 0
    angles = positions[:, None] * by.frequencies(long)
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


def _open(of: MoE, merit: np.ndarray) -> np.ndarray:
    """Experts' merit [t e], -inf outside the best groups: a group counts for its best, or its best two."""
    grouped = merit.reshape(len(merit), of.router.groups, -1)
    ranked = -np.sort(-grouped, axis=2)
    best = ranked[..., 0] + ranked[..., 1] if of.router.group_of_two else ranked[..., 0]
    kept = np.argsort(-best, axis=1, kind="stable")[:, : of.router.top_groups]
    open = np.zeros(best.shape, bool)
    np.put_along_axis(open, kept, True, axis=1)
    return np.where(open[..., None], grouped, np.float32(-np.inf)).reshape(merit.shape)


def _in_order(x: np.ndarray) -> np.ndarray:
    """The sum of each row, one number after another: float32 [t 1] of [t n]."""
    return np.add.accumulate(x, axis=1)[:, -1:]


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (np.float32(1) + arithmetic.exponential(-x))


# Our own fit of P, within 4e-8 of its values for a up to 12, past which nothing is left of Phi(-a).
GELU = (2.816112583e-2, -1.649588851e-1, 3.219553669e-1, -2.363325110e-1, 2.236916208e-1)
GELU += (2.315553749e-2, 1.063810081e-1, 9.812455136e-2, 9.982216728e-2)


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    """x/2 (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2/pi) (x + 0.044715 x^3)."""
    u = x * arithmetic.fma(x * x, np.float32(0.044715), np.float32(1))
    return x / (np.float32(1) + arithmetic.exponential(u * np.float32(-1.5957691216)))


def _gelu(x: np.ndarray) -> np.ndarray:
    """x Phi(x) = max(x, 0) - |x| Phi(-|x|), with Phi(-a) = e^(-a^2/2) t P(t), t = 1 / (1 + a/4)."""
    a = np.minimum(np.float32(12), np.abs(x))
    t = np.float32(1) / arithmetic.fma(np.float32(0.25), a, np.float32(1))
    p = np.float32(GELU[0])
    for term in GELU[1:]:
        p = arithmetic.fma(p, t, np.float32(term))
    below = (p * t) * arithmetic.exponential(a * a * np.float32(-0.5))
    return np.maximum(x, np.float32(0)) - a * below


def _xielu(x: np.ndarray, above: Any, below: Any, beta: Any, most: Any) -> np.ndarray:
    curved = np.expm1(np.minimum(x, most).astype(np.float64)).astype(np.float32) - x
    return beta * x + np.where(x > 0, above * x * x, below * curved)


ACTIVATIONS = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "gelu": _gelu,
    "gelu_sigmoid": lambda x: x / (np.float32(1) + arithmetic.exponential(x * np.float32(-1.702))),
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "relu2": lambda x: np.maximum(x, np.float32(0)) ** 2,
}
