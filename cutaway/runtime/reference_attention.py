"""The mixers of a block in numpy: attention, latent attention with its indexer, recurrences.

Queries, keys and values are made, normed and rotated as the block's config says; keys and values join the
text's state as cache_formats.py keeps them. Edited attention weights gather the values again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np

from cutaway.gguf import Packed
from cutaway.model.block_config import Block
from cutaway.model.kinds import kind_of
from cutaway.runtime import arithmetic, attention, block_numbers, cache_formats, matmul, recurrence
from cutaway.runtime.adapter import Beside
from cutaway.runtime.edits import reweighed
from cutaway.runtime.numpy_layers import Layers, See, rotated, unwatched
from cutaway.runtime.reference_state import State, recurrences, watcher
from cutaway.runtime.values import PATTERN
from cutaway.weights.decoders import window_of
from cutaway.weights.named_tensors import Tensors


class Mixers(Layers):
    """The mixers of a decoder's blocks, whose keys and values are cached as ``kv_cache``."""

    def __init__(self, tensors: Tensors, kv_cache: cache_formats.Kind) -> None:
        super().__init__(tensors)
        self.kv_cache: cache_formats.Kind = kv_cache

    def mixed(
        self,
        block: Block,
        n: int,
        x: np.ndarray,
        positions: np.ndarray,
        state: State,
        kept: dict[str, Any],
    ) -> np.ndarray:
        """What a block's mixers give, multiplied and added where there are two."""
        see = watcher(state, n, kept)
        outs = [self._attention(block, n, x, positions, state, kept)] if block_numbers.attends(block) else []
        if block_numbers.latent(block):
            return self._latent_attention(block, n, x, positions, state, kept)
        for path, of in recurrences(f"blocks.{n}", block).items():
            factor = block.beside.inputs[1] if block.beside else 1.0

            def projected(
                name: str, by: float, of: np.ndarray | None = None, path: str = path, factor: Any = factor
            ) -> np.ndarray:
                if of is not None:
                    return self.matrix(f"{path}.{name}", of) * np.float32(by)
                return self.matrix(f"{path}.{name}", x, {}, factor) * np.float32(by)

            def learned(name: str, path: str = path) -> np.ndarray:
                return self.vector(f"{path}.{name}")

            own = unwatched if block.beside else see
            mix = partial(recurrence.MIXERS[kind_of(of)], of, learned=learned)
            if f"{path}.state" in kept:
                kept[f"{path}.state"] = _each_state(mix, projected, len(x), state.carried[path])
            seen = partial(own, "attention.z")
            rows, state.carried[path] = mix(projected=projected, carried=state.carried[path], see=seen)
            rows = own("attention.out_input", rows.reshape(len(x), getattr(of, "heads", 1), -1))
            out = self.matrix(f"{path}.out", rows.reshape(len(x), -1))
            outs.append(see("beside.out" if block.beside else "attention.out", out))
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
        see = watcher(state, n, kept)
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
            value = see("attention.v", self.norm(value, f"{path}.value_norm", of.value_norm))
            stored = cache_formats.stored_pairs if kind_of(of) == "differential" else cache_formats.stored
            key, value = cache_formats.stored(key, self.kv_cache), stored(value, self.kv_cache)
            state.keys[n] = np.concatenate([state.keys[n], key])
            state.values[n] = np.concatenate([state.values[n], value])
            halves = {"k": key.astype(np.float32), "v": value.astype(np.float32)}
        source = n if of.kv_layer is None else of.kv_layer
        scaled = query * np.float32(of.key_size**-0.5 if of.scale is None else of.scale)
        seen = (
            window_of(of),
            of.softcap,
            block_numbers.alibi_of(of) if of.relative else None,
            self.vector(f"{path}.sinks") if of.sinks else None,
        )
        values = state.values[source]
        if kind_of(of) == "differential":  # both halves of the heads read the same pairs of values
            values = np.concatenate([cache_formats.paired(values)] * 2, axis=1)
        mixed = attention.attend(scaled, state.keys[source], values, positions, *seen)
        patterns = partial(attention.patterns, scaled, state.keys[source], positions, *seen)
        self._reattended(state, n, patterns, values, mixed, kept)
        if f"{path}.scores" in kept:
            kept[f"{path}.scores"] = attention.scores(scaled, state.keys[source], positions, *seen[1:3])
        mixed = self._subtracted(of, path, mixed) if kind_of(of) == "differential" else mixed
        mixed = see("attention.z", mixed)
        kept |= {f"{path}.{name}": each for name, each in halves.items()}
        mixed = mixed.reshape(tokens, -1)
        if kind_of(of) in block_numbers.GATED:
            gate = self.matrix(f"{path}.gate", x, {}, factor)
            gate = see("attention.gate", np.float32(1) / (np.float32(1) + arithmetic.exponential(-gate)))
            mixed = see("attention.out_input", (mixed * gate).reshape(tokens, of.heads, -1))
            mixed = mixed.reshape(tokens, -1)
        return see("attention.out", self.matrix(f"{path}.out", mixed, state.adapter))

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
        factor, kept = map(np.float32, block_numbers.difference(path, of, self.tensors))
        normed = self.norm(one - factor * two, f"{path}.head_norm", block_numbers.difference_norm(of))
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
        see = watcher(state, n, kept)
        down = self.matrix(f"{path}.down", x)
        rotation = (positions, of.position, state.longer)
        plain = self.norm(down[:, None, : of.latent], f"{path}.latent_norm", of.norm)
        rotated_key = rotated(down[:, None, of.latent :], *rotation)
        latents = see("attention.latent", np.concatenate([plain, rotated_key], axis=-1))
        row = cache_formats.latent_row(latents, of.latent)
        beside = row.shape[-1] - -(-of.rope_dim // arithmetic.LANES) * arithmetic.LANES
        state.keys[n] = np.concatenate([state.keys[n], cache_formats.stored(row, self.kv_cache)])
        normed = x
        if of.query_latent is not None:
            x = self.norm(self.matrix(f"{path}.query_down", x), f"{path}.query_norm", of.norm)
        chosen = self._chosen(of, n, normed, x, positions, state) if block_numbers.indexed(of) else None
        query = self.matrix(f"{path}.query", x).reshape(tokens, of.heads, -1)
        last = rotated(query[..., of.key_size :], *rotation)
        query = see("attention.q", np.concatenate([query[..., : of.key_size], last], axis=-1))
        scale = np.float32(block_numbers.latent_scale(of))
        absorbed = np.zeros((tokens, of.heads, row.shape[-1]), np.float32)
        plain = query[..., : of.key_size] * scale
        absorbed[..., : of.latent] = _each_head(block_numbers.key_up(path, of, self.tensors), plain)
        absorbed[..., beside : beside + of.rope_dim] = query[..., of.key_size :] * scale
        rows = state.keys[n]
        if f"{path}.scores" in kept:
            kept[f"{path}.scores"] = attention.scores(absorbed, rows, positions, latent=True)
        read = attention.attend(absorbed, rows, rows[..., : of.latent], positions, latent=True, chosen=chosen)
        patterns = partial(attention.patterns, absorbed, rows, positions, chosen=chosen, latent=True)
        self._reattended(state, n, patterns, rows[..., : of.latent], read, kept)
        kept[f"{path}.latent"] = cache_formats.stored_latent(latents, of.latent, self.kv_cache).astype(
            np.float32
        )
        if f"{path}.chosen" in kept:
            assert chosen is not None
            kept[f"{path}.chosen"] = [
                one[None, : at + 1].astype(np.float32) for one, at in zip(chosen, positions, strict=True)
            ]
        mixed = see("attention.z", _each_head(self.tensors[f"{path}.value_up.weight"], read))
        return see("attention.out", self.matrix(f"{path}.out", mixed.reshape(tokens, -1), state.adapter))

    def _chosen(
        self, of: Any, n: int, x: np.ndarray, asked: np.ndarray, positions: np.ndarray, state: State
    ) -> np.ndarray:
        """bool [t s]: the keys that an indexer chooses for tokens [t d], whose queries come out of ``asked``.

        It rotates half-split, whatever the model's pairs are; its keys are in the layer's values.
        """
        path = f"blocks.{n}.attention"
        by = of.position and replace(of.position, interleaved=False)
        scale, weight_scale = map(np.float32, block_numbers.index_scales(of))
        key = self.norm(self.matrix(f"{path}.index_key", x), f"{path}.index_norm", block_numbers.INDEX_NORM)
        key = cache_formats.stored(rotated(key[:, None], positions, by, state.longer), self.kv_cache)
        state.values[n] = np.concatenate([state.values[n], key])
        query = self.matrix(f"{path}.index_query", asked).reshape(len(x), of.index_heads, -1)
        query = rotated(query, positions, by, state.longer) * scale
        weights = self.matrix(f"{path}.index_weight", x) * weight_scale
        return attention.choose(query, state.values[n], weights, positions, of.top_k)

    def _rows(
        self, of: Any, path: str, x: np.ndarray, adapter: Mapping[str, Beside], factor: float
    ) -> np.ndarray:
        """Queries, keys or values [t n], bounded where the model does so."""
        rows = self.matrix(path, x, adapter, factor)
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
            return self.norm(x.reshape(len(x), -1), path, of.qk_norm).reshape(x.shape)
        return self.norm(x, path, of.qk_norm)


def _each_state(mix: Any, projected: Any, tokens: int, carried: Any) -> np.ndarray:
    """What a recurrence holds after each token, float32 [t h k v]."""
    states = []
    for t in range(tokens):

        def row(name: str, by: float, of: np.ndarray | None = None, t: int = t) -> np.ndarray:
            return projected(name, by, of)[t : t + 1] if of is None else projected(name, by, of)

        carried = mix(projected=row, carried=carried, see=lambda z: z)[1]
        states.append(carried.S)
    return np.stack(states)


def _each_head(packed: Packed, x: np.ndarray) -> np.ndarray:
    """Each head's part of a matrix [h a, b] times its own vectors [t h b]: float32 [t h a]."""
    heads = x.shape[1]
    rows = packed.shape[0] // heads
    parts = [packed.rows(slice(head * rows, (head + 1) * rows)) for head in range(heads)]
    return np.stack([matmul.product(part, x[:, head]) for head, part in enumerate(parts)], axis=1)
