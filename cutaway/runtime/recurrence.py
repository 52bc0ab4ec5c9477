"""Recurrent layers as the runtime does them: token by token, so that no cut of a text changes a bit.

A short convolution reads a channel's last few numbers (its tail); a head's state S [k v] changes with each
token (attention/gated_delta.py, attention/kda.py, attention/mamba2.py):

    S = a S + key (value - (delta) key' S)'      z = query' S

The reference implementation of native/runtime/recurrence.cpp and of step.cpp's ``pass_group``, to the bit:
rows of a state and taps of a convolution are added in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cutaway.runtime.arithmetic import exp, exponential, rms_norm, unit

Projected = Callable[
    ..., np.ndarray
]  # a matrix by its name, what multiplies its rows, and what it reads: [t n]
Learned = Callable[[str], np.ndarray]  # a vector, or the convolution's weights, by its name
See = Callable[[np.ndarray], np.ndarray]  # what each head reads [t h v]: as edits leave it


class Carried(NamedTuple):
    """What a layer keeps of a text: float32 [channels taps - 1], and [h k v], None in a short convolution."""

    tail: np.ndarray
    S: np.ndarray | None


def empty(of: Any) -> Carried:
    """The state before the first token."""
    tail = np.zeros((of.channels, of.conv - 1), np.float32)
    return Carried(tail, np.zeros(of.state_shape, np.float32) if of.state_shape else None)


def short_conv(
    of: Any, projected: Projected, learned: Learned, carried: Carried, see: See
) -> tuple[np.ndarray, Carried]:
    """What the last matrix reads, float32 [t n], of a gated short convolution."""
    query, key, value = (projected(name, 1.0) for name in ("query", "key", "value"))
    bias = learned("conv.bias") if of.bias else None
    rows, tail = [], carried.tail
    for one in key * value:
        y, tail = convolved(one, learned("conv.weight"), bias, tail)
        rows.append(y)
    return query * see(np.stack(rows)[:, None])[:, 0], Carried(tail, None)


def gated_delta(
    of: Any, projected: Projected, learned: Learned, carried: Carried, see: See
) -> tuple[np.ndarray, Carried]:
    """What the last matrix reads, of the gated delta rule."""
    names = ("query", "key", "value")
    lines = np.concatenate([projected(name, 1.0) for name in names], axis=1)
    gates, steps, betas = (projected(name, 1.0) for name in ("gate", "forget", "beta"))
    keys, (tail, S) = of.groups * of.key_size, carried
    weights, scale = learned("conv.weight"), np.float32(1 / np.sqrt(np.float64(of.key_size)))
    step, rate = softplus(steps + learned("decay.dt_bias")), exp(learned("decay.A_log"))
    rows = []
    for t, line in enumerate(lines):
        y, tail = convolved(line, weights, None, tail)
        y = _silu(y)
        query, key = (unit(y[at : at + keys].reshape(of.groups, -1)) for at in (0, keys))
        query, key = (each.repeat(of.heads // of.groups, axis=0) for each in (query * scale, key))
        strength = np.float32(1) / (np.float32(1) + exp(-betas[t]))
        value = y[2 * keys :].reshape(of.heads, -1)
        z, S = changed(S, exp(-step[t] * rate), True, key, strength, value, query)
        rows.append(z)
    z = rms_norm(see(np.stack(rows)), learned("norm.weight"), of.norm.eps)
    return z.reshape(len(z), -1) * _silu(gates), Carried(tail, S)


def kda(
    of: Any, projected: Projected, learned: Learned, carried: Carried, see: See
) -> tuple[np.ndarray, Carried]:
    """What the last matrix reads, of Kimi Delta Attention: each row of a head's state decays by itself."""
    names = ("query", "key", "value")
    lines = np.concatenate([projected(name, 1.0) for name in names], axis=1)
    weights = np.concatenate([learned(f"conv.{name}.weight") for name in names])
    gates, steps = (projected(name, 1.0, projected(f"{name}_down", 1.0)) for name in ("gate", "forget"))
    betas, keys, (tail, S) = projected("beta", 1.0), of.heads * of.key_size, carried
    scale = np.float32(1 / np.sqrt(np.float64(of.key_size)))
    step, rate = softplus(steps + learned("decay.dt_bias")), exp(learned("decay.A_log"))
    rows = []
    for t, line in enumerate(lines):
        y, tail = convolved(line, weights, None, tail)
        y = _silu(y)
        query, key = (unit(y[at : at + keys].reshape(of.heads, -1)) for at in (0, keys))
        value = y[2 * keys :].reshape(of.heads, -1)
        strength = np.float32(1) / (np.float32(1) + exp(-betas[t]))
        decay = exp(-step[t].reshape(of.heads, -1) * rate[:, None])
        z, S = changed(S, decay, True, key, strength, value, query * scale)
        rows.append(z)
    z = rms_norm(see(np.stack(rows)), learned("norm.weight"), of.norm.eps)
    gate = np.float32(1) / (np.float32(1) + exponential(-gates))
    return z.reshape(len(z), -1) * gate, Carried(tail, S)


def mamba2(
    of: Any, projected: Projected, learned: Learned, carried: Carried, see: See
) -> tuple[np.ndarray, Carried]:
    """What the last matrix reads, of Mamba 2."""
    names, by = ("value", "key", "query"), of.multipliers
    lines = np.concatenate([projected(name, m) for name, m in zip(names, by[1:4], strict=True)], axis=1)
    gates, steps = projected("gate", by[0]), projected("step", by[4])
    values, keys, (tail, S) = of.heads * of.values, of.groups * of.key_size, carried
    weights, bias = learned("conv.weight"), learned("conv.bias") if of.conv_bias else None
    step, rate = softplus(steps + learned("decay.dt_bias")), exp(learned("decay.A_log"))
    step = np.maximum(step, np.float32(of.least or 0.0))
    rows = []
    for t, line in enumerate(lines):
        y, tail = convolved(line, weights, bias, tail)
        y = _silu(y)
        value = y[:values].reshape(of.heads, -1)
        key, query = (y[at : at + keys].reshape(of.groups, -1) for at in (values, values + keys))
        key, query = (each.repeat(of.heads // of.groups, axis=0) for each in (key, query))
        decay, ones = exp(-step[t] * rate), np.ones(of.heads, np.float32)
        z, S = changed(S, decay, False, key, ones, step[t][:, None] * value, query)
        rows.append(z + learned("D")[:, None] * value)
    z = see(np.stack(rows)).reshape(len(rows), -1)
    given = [_output(of, one, _silu(gate), learned) for one, gate in zip(z, gates, strict=True)]
    return np.stack(given), Carried(tail, S)


def _output(of: Any, z: np.ndarray, gate: np.ndarray, learned: Learned) -> np.ndarray:
    """z gated, and each group normed, before it or after."""
    if of.normed is None:
        return z * gate
    weight = learned("norm").reshape(of.groups, -1)

    def normed(x: np.ndarray) -> np.ndarray:
        return rms_norm(x.reshape(of.groups, -1), weight, of.eps).reshape(-1)

    return normed(z) * gate if of.normed == "first" else normed(z * gate)


def convolved(
    x: np.ndarray, weights: np.ndarray, bias: np.ndarray | None, tail: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One token x [n] with the numbers before it, weighted [n taps]; and the tail after it."""
    y = x * weights[:, -1]
    for j in range(tail.shape[1]):
        y = y + tail[:, j] * weights[:, j]
    moved = np.concatenate([tail, x[:, None]], axis=1)[:, 1:]
    return y if bias is None else y + bias, moved


def changed(
    S: np.ndarray | None,
    decay: np.ndarray,
    delta: bool,
    key: np.ndarray,
    strength: np.ndarray,
    value: np.ndarray,
    query: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """z [h v] and S [h k v] after one token: keys and queries [h k], values [h v], decay and strength [h].

    Of ``decay`` [h k] each row of a state has its own.
    """
    assert S is not None
    S = S * decay.reshape(len(decay), -1, 1)
    written = value - _summed(S * key[..., None]) if delta else value
    S = S + (key * strength[:, None])[..., None] * written[:, None]
    return _summed(S * query[..., None]), S


def _summed(x: np.ndarray) -> np.ndarray:
    """The sum over rows [h k v], one after another."""
    return np.add.accumulate(x, axis=1)[:, -1]


def softplus(x: np.ndarray) -> np.ndarray:
    """ln(1 + e^x) in double, rounded once; x itself above 20."""
    wide = np.log1p(np.exp(np.minimum(x, np.float32(20)).astype(np.float64))).astype(np.float32)
    return np.where(x > 20, x, wide)


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (np.float32(1) + exponential(-x))


MIXERS = {"short_conv": short_conv, "gated_delta": gated_delta, "mamba2": mamba2, "kda": kda}
