"""Attention as the runtime does it: over pages of 128 positions, whose results are merged in their order.

A page gives, for each query, the largest score m, the sum l of e^(score - m), and the values weighted so,
unnormalised. Two such triples are one of both pages (FlashAttention's running softmax, 2205.14135):

    m = max(m1, m2)     l = l1 e^(m1 - m) + l2 e^(m2 - m)     o = o1 e^(m1 - m) + o2 e^(m2 - m)

so that pages can be shared out over threads. Keys and values are halves. This is the twin of
native/runtime/attention.cpp, in float32 as there; it adds dimensions in numpy's order."""

from __future__ import annotations

import numpy as np

PAGE = 128


def attend(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    positions: np.ndarray,
    window: int | None = None,
    softcap: float | None = None,
) -> np.ndarray:
    """float32 [t h v]: what each head of each token gathers.

    ``query`` float32 [t h k], already scaled, of the tokens at ``positions`` int [t]; ``keys`` float16
    [s g k] and ``values`` float16 [s g v] of positions 0 to s - 1; head i looks into group i // (h / g), at
    its own position and those before it, at most ``window`` of them."""
    tokens, heads, _ = query.shape
    groups, size = values.shape[1:]
    rows = query.reshape(tokens, groups, heads // groups, -1).astype(np.float32)
    highest = np.full((*rows.shape[:3], 1), -np.inf, np.float32)
    weight = np.zeros_like(highest)
    mixed = np.zeros((*rows.shape[:3], size), np.float32)
    for first in range(0, len(keys), PAGE):
        page = slice(first, first + PAGE)
        scores = np.einsum("tgrk,sgk->tgrs", rows, keys[page].astype(np.float32))
        if softcap:
            scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
        at = np.arange(first, min(first + PAGE, len(keys)))
        seen = at <= positions[:, None]
        if window:
            seen &= at > positions[:, None] - window
        scores = np.where(seen[:, None, None], scores, np.float32(-np.inf))
        most = np.maximum(highest, scores.max(axis=-1, keepdims=True))
        reached = np.where(np.isfinite(most), most, np.float32(0))  # a page of which nothing is seen
        shares = np.exp(scores - reached)
        kept = np.exp(highest - reached)
        weight = weight * kept + shares.sum(axis=-1, keepdims=True)
        mixed = mixed * kept + np.einsum("tgrs,sgv->tgrv", shares, values[page].astype(np.float32))
        highest = most
    return (mixed / weight).reshape(tokens, heads, size)
