"""One attention score step by step: query times key, scale, cap, the distance's bias, the softmax of its row.

And what rotary positions did to the query and the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.inspect.inputs import source_layer
from cutaway.inspect.trace_values import TraceValues
from cutaway.position import rope


@dataclass(frozen=True)
class Rotation:
    """One pair of dimensions before and after RoPE rotates it by ``angle`` radians."""

    position: int
    angle: float
    before: tuple[float, float]
    after: tuple[float, float]


@dataclass(frozen=True)
class RotatedPair:
    """The pair whose rotation changes the score most: its two dimensions, its frequency, both rotations."""

    dimensions: tuple[int, int]
    radians_per_token: float
    query: Rotation
    key: Rotation


@dataclass(frozen=True)
class AttentionWeight:
    """One key's part in the softmax: ``exp`` = exp(score - highest), ``weight`` = exp / sum of all exp."""

    position: int
    score: float
    visible: bool
    exp: float
    weight: float


@dataclass(frozen=True)
class Sink:
    """A learned score without a value: it takes part in the softmax and adds nothing to the output."""

    score: float
    exp: float
    weight: float


@dataclass(frozen=True)
class Score:
    """One attention score: dot · scale, soft-capped if there is a cap, plus ``bias`` for the distance."""

    query_position: int
    key_position: int
    query: tuple[float, ...]
    key: tuple[float, ...]
    dot: float
    scale: float
    softcap: float | None
    bias: float | None
    score: float
    weights: tuple[AttentionWeight, ...]
    sink: Sink | None


def queries_keys_values(trace: TraceValues, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a layer's scores and outputs are made of: q [h t k], k [g t k], v [g t v], perhaps lent."""
    lender = source_layer(trace.config, layer)
    k, v = (trace[f"blocks.{lender}.attention.{name}"] for name in "kv")
    return trace[f"blocks.{layer}.attention.q"], k, v


def score(trace: TraceValues, layer: int, head: int, q: np.ndarray, k: np.ndarray, source: int) -> Score:
    """A score in float64 from the query and key of the trace, and the softmax of its row."""
    config, engine = trace.config.blocks[layer].attention, trace.instrumented
    query, keys = q[-1].astype(np.float64), k.astype(np.float64)
    cap, scale = getattr(config, "softcap", None), score_scale(config)
    scores = keys @ query * scale
    scores = scores if cap is None else cap * np.tanh(scores / cap)
    bias = engine.distance_bias(layer, len(trace.ids))
    if bias is not None:
        scores = scores + bias[head][::-1]
    visible = visible_keys(trace, layer)[-1]
    learned = sinks(trace, layer)
    sink = None if learned is None else float(learned[head])
    highest = max(float(scores[visible].max()), -np.inf if sink is None else sink)
    exps = np.where(visible, np.exp(np.minimum(scores - highest, 0)), 0.0)
    sink_exp = 0.0 if sink is None else float(np.exp(sink - highest))
    total = exps.sum() + sink_exp
    columns = (column.tolist() for column in (scores, visible, exps, exps / total))
    return Score(
        query_position=len(trace.ids) - 1,
        key_position=source,
        query=tuple(query.tolist()),
        key=tuple(keys[source].tolist()),
        dot=float(keys[source] @ query),
        scale=scale,
        softcap=cap,
        bias=None if bias is None else float(bias[head, len(trace.ids) - 1 - source]),
        score=float(scores[source]),
        weights=tuple(AttentionWeight(i, *one) for i, one in enumerate(zip(*columns, strict=True))),
        sink=None if sink is None else Sink(sink, sink_exp, sink_exp / float(total)),
    )


def score_scale(config: Any) -> float:
    """What multiplies the product of a query and a key; latent attention's have a rotated part besides."""
    if config.scale is not None:
        return config.scale
    return (config.key_size + getattr(config, "rope_dim", 0)) ** -0.5


def sinks(trace: TraceValues, layer: int) -> np.ndarray | None:
    """float32 [h]: the learned scores without a value of a layer's heads, if it has them."""
    name = f"blocks.{layer}.attention.sinks"
    return trace.instrumented.weight(name) if name in trace.config.weights() else None


def visible_keys(trace: TraceValues, layer: int) -> np.ndarray:
    """bool [t s]: whether token t attends to token s in a layer, by its mask, or as an indexer chose."""
    name = f"blocks.{layer}.attention.chosen"
    if name in trace:
        return trace[name]
    at = np.arange(len(trace.ids))
    seen = trace.config.blocks[layer].attention.visibility.sees(at[:, None], at[None])
    return np.broadcast_to(seen, (len(at), len(at)))


def first_rotated(config: Any) -> int:
    """The first rotated dimension of a head: latent attention rotates its last ones."""
    return getattr(config, "key_size", 0) if hasattr(config, "rope_dim") else 0


def magnitude(config: Any) -> float:
    """What rotation multiplies queries and keys by; a norm after it undoes that."""
    return 1.0 if getattr(config, "qk_norm_after", False) else config.position.magnitude


def rotated_pair(config: Any, q: np.ndarray, k: np.ndarray, source: int) -> RotatedPair:
    """The pair whose rotation changes q · k most. What it was before is found by rotating it back."""
    position: rope.Config = config.position
    frequencies = position.frequencies(len(q))
    last = len(q) - 1
    at = _dimensions(position, first_rotated(config))
    query, key = (row[at[0]].astype(np.float64) + 1j * row[at[1]] for row in (q[last], k[source]))
    query_before, key_before = (
        pairs * np.exp(-1j * token * frequencies) / magnitude(config)
        for pairs, token in ((query, last), (key, source))
    )
    change = (query * key.conj()).real - (query_before * key_before.conj()).real
    pair = int(np.abs(change).argmax())
    frequency = float(frequencies[pair])
    return RotatedPair(
        dimensions=(int(at[0][pair]), int(at[1][pair])),
        radians_per_token=frequency,
        query=_rotation(last, frequency, query_before[pair], query[pair]),
        key=_rotation(source, frequency, key_before[pair], key[pair]),
    )


def _dimensions(position: rope.Config, first: int) -> tuple[np.ndarray, np.ndarray]:
    """The two dimensions of each pair: (2i, 2i + 1) where they are interleaved, else (i, i + half)."""
    half = position.size // 2
    i = np.arange(half) + first
    return (i * 2 - first, i * 2 - first + 1) if position.interleaved else (i, i + half)


def _rotation(position: int, frequency: float, before: complex, after: complex) -> Rotation:
    pairs = ((float(pair.real), float(pair.imag)) for pair in (before, after))
    return Rotation(position, position * frequency, *pairs)
