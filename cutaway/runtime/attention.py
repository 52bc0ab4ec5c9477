"""Attention as the runtime does it: over pages of 128 positions, whose results are merged in their order.

A page gives three numbers or vectors for each query: the largest score m, the sum l of e^(score - m), and
the values summed with these weights, o. Two pages merge (FlashAttention's running softmax, 2205.14135):

    m = max(m1, m2)     l = l1 e^(m1 - m) + l2 e^(m2 - m)     o = o1 e^(m1 - m) + o2 e^(m2 - m)

so that pages can be shared out over threads. Keys and values are halves. The reference implementation of
native/runtime/attention.cpp, to the bit: dimensions, positions and pages are added in their order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cutaway.runtime.arithmetic import LANES, exp, exponential, fma, lane_total, softcapped

PAGE = 128


class Sides(NamedTuple):
    """An encoder's attention: how many tokens to either side are seen, None for all; and what scores gain,
    float32 [h t s], or None.
    """

    reach: int | None
    relative: np.ndarray | None


def attend(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    positions: np.ndarray,
    window: int | None = None,
    softcap: float | None = None,
    alibi: np.ndarray | None = None,
    sinks: np.ndarray | None = None,
    latent: bool = False,
    chosen: np.ndarray | None = None,
    sides: Sides | None = None,
) -> np.ndarray:
    """float32 [t h v]: the output of each head at each token.

    ``query`` float32 [t h k], already scaled, of the tokens at ``positions`` int [t]; ``keys`` float16
    [s g k] and ``values`` float16 [s g v] of positions 0 to s - 1; head i attends in group i // (h / g), to
    its own position and those before it, at most ``window`` of them. Of ``alibi`` float32 [h] a score loses
    its head's for each position of distance; ``sinks`` float32 [h] are scores that take attention and give
    nothing. Of ``latent`` rows of the cache, whole sixteens, dimensions are added in sixteen lanes.
    ``chosen`` bool [t s] are the positions that a token reads (DeepSeek sparse attention). With ``sides``
    a token sees later ones too, and keys and values are floats (encoders)."""
    tokens, heads, _ = query.shape
    groups, size = values.shape[1:]
    rows = query.reshape(tokens, groups, heads // groups, -1)
    highest = np.full((*rows.shape[:3], 1), -np.inf, np.float32)
    weight = np.zeros_like(highest)
    output = np.zeros((*rows.shape[:3], size), np.float32)
    for first in range(0, len(keys), PAGE):
        at = np.arange(first, first + PAGE)
        seen = at <= positions[:, None] if sides is None else np.ones((tokens, PAGE), bool)
        if sides is not None and sides.reach is not None:
            seen &= np.abs(at - positions[:, None]) <= sides.reach
        if window:
            seen &= at > positions[:, None] - window
        page = slice(first, first + PAGE)
        if chosen is not None:
            seen[:, : len(keys) - first] &= chosen[:, page]
        lost = None
        if alibi is not None:
            distances = (positions[:, None] - at[: len(keys) - first]).astype(np.float32)[:, None, None]
            lost = alibi.reshape(1, groups, -1, 1) * distances
        if sides is not None and sides.relative is not None:
            lost = -sides.relative[:, :, page].swapaxes(0, 1).reshape(tokens, groups, heads // groups, -1)
        more, more_highest, more_weight = _page(rows, keys[page], values[page], seen, softcap, lost, latent)
        most = np.maximum(highest, more_highest)
        base = np.where(np.isfinite(most), most, np.float32(0))  # a query that saw nothing yet
        kept = np.where(weight == 0, np.float32(0), exp(highest - base))
        added = exp(more_highest - base)
        output = output * kept + more * added
        highest, weight = most, weight * kept + more_weight * added
    if sinks is not None:
        sink = sinks.reshape(groups, -1, 1)
        most = np.maximum(highest, sink)
        kept = exp(highest - most)
        output, weight = output * kept, weight * kept + exp(sink - most)
    return (output / weight).reshape(tokens, heads, size)


def patterns(
    query: np.ndarray,
    keys: np.ndarray,
    positions: np.ndarray,
    window: int | None = None,
    softcap: float | None = None,
    alibi: np.ndarray | None = None,
    sinks: np.ndarray | None = None,
    chosen: np.ndarray | None = None,
    latent: bool = False,
) -> list[np.ndarray]:
    """The attention weights of each token, float32 [h s] over the positions up to its own.

    Takes what ``attend`` takes. Weights are added in their order, behind that of a sink."""
    found = []
    all_scores = scores(query, keys, positions, softcap, alibi, latent)
    for t, (row, position) in enumerate(zip(all_scores, positions.tolist(), strict=True)):
        row = row.copy()
        row[:, : max(0, position + 1 - (window or position + 1))] = -np.inf
        if chosen is not None:
            row[:, ~chosen[t, : position + 1]] = -np.inf
        highest = row.max(axis=1, keepdims=True)
        sink = np.full_like(highest, -np.inf) if sinks is None else sinks[:, None]
        highest = np.maximum(highest, sink)
        weights = np.concatenate([exp(sink - highest), exp(row - highest)], axis=1)
        found.append(weights[:, 1:] / np.add.accumulate(weights, axis=1)[:, -1:])
    return found


def gathered(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """float32 [h v]: values [s g v] by weights [h s], positions in their order within a page, and pages."""
    wide = values.astype(np.float32).repeat(len(weights) // values.shape[1], axis=1)
    output = np.zeros(wide.shape[1:], np.float32)
    for first in range(0, weights.shape[1], PAGE):
        page = np.zeros_like(output)
        for s in range(first, min(first + PAGE, weights.shape[1])):
            page = fma(weights[:, s, None], wide[s], page)
        output = output + page
    return output


def scores(
    query: np.ndarray,
    keys: np.ndarray,
    positions: np.ndarray,
    softcap: float | None = None,
    alibi: np.ndarray | None = None,
    latent: bool = False,
) -> list[np.ndarray]:
    """The scores of each token, float32 [h s] of all positions up to its own; takes what ``attend`` takes."""
    rows = query.reshape(len(query), keys.shape[1], -1, query.shape[-1])
    found = softcapped((_scores_in_lanes if latent else _scores)(rows, keys), softcap)
    if alibi is not None:
        distances = (positions[:, None] - np.arange(len(keys))).astype(np.float32)[:, None, None]
        found = found - alibi.reshape(1, keys.shape[1], -1, 1) * distances
    found = found.reshape(len(query), -1, len(keys))
    return [row[:, : position + 1] for row, position in zip(found, positions.tolist(), strict=True)]


def choose(
    query: np.ndarray, keys: np.ndarray, weights: np.ndarray, positions: np.ndarray, top_k: int
) -> np.ndarray:
    """bool [t s]: the ``top_k`` positions of the highest scores of those that a token sees; of equal ones the
    earliest.

    ``query`` float32 [t n e], scaled, of the tokens at ``positions`` int [t]; ``keys`` [s 1 e]; ``weights``
    float32 [t n] of the heads, which are added in their order."""
    fits = _scores(query[:, None], keys)[:, 0]  # [t n s]
    fits = np.where(fits > 0, fits, np.float32(0))
    scores = np.zeros((len(query), len(keys)), np.float32)
    for head in range(query.shape[1]):
        scores = scores + weights[:, head, None] * fits[:, head]
    seen = np.arange(len(keys)) <= positions[:, None]
    scores = np.where(seen & ~np.isnan(scores), scores, np.float32(-np.inf))
    order = np.argsort(-scores, axis=1, kind="stable")  # what is not seen is behind all that is
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, order[:, :top_k], True, axis=1)
    return chosen & seen


def _page(
    rows: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    seen: np.ndarray,
    softcap: float | None,
    lost: np.ndarray | None,
    latent: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One page for queries [t g r k]: the weighted values [t g r v], the largest score and the weights' sum
    [t g r 1].
    """
    length = len(keys)
    scores = (_scores_in_lanes if latent else _scores)(rows, keys)
    seen = seen[:, None, None, :length]
    scores = softcapped(scores, softcap)
    scores = np.where(seen, scores if lost is None else scores - lost, np.float32(-np.inf))
    highest = scores.max(axis=-1, keepdims=True)
    base = np.where(np.isfinite(highest), highest, np.float32(0))  # a page of which nothing is seen
    weights = np.where(seen, exponential(scores - base), np.float32(0))
    lanes = np.zeros((*rows.shape[:3], LANES), np.float32)
    for at in range(0, length, LANES):
        block = weights[..., at : at + LANES]
        lanes[..., : block.shape[-1]] += block
    output = np.zeros((*rows.shape[:3], values.shape[-1]), np.float32)
    for s, value in enumerate(values.astype(np.float32)):  # [g v]
        output = fma(weights[..., s, None], value[:, None], output)
    return output, highest, lane_total(lanes)[..., None]


def _scores(rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Scores [t g r s] of queries [t g r k] and keys [s g k]: dimensions are added in their order."""
    scores = np.zeros((*rows.shape[:3], len(keys)), np.float32)
    for d, key in enumerate(np.moveaxis(keys.astype(np.float32), 0, -1).swapaxes(0, 1)):  # [k g s]
        scores = fma(rows[..., d, None], key[:, None], scores)
    return scores


def _scores_in_lanes(rows: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Scores [t g r s] of queries [t g r k] and keys [s g k]: a lane is a dimension of each sixteen."""
    cut = rows.reshape(*rows.shape[:3], 1, -1, LANES)
    lanes = np.zeros((*rows.shape[:3], len(keys), LANES), np.float32)
    for d, key in enumerate(np.moveaxis(keys.astype(np.float32).reshape(*keys.shape[:2], -1, LANES), 2, 0)):
        lanes = fma(key.swapaxes(0, 1)[:, None], cut[..., d, :], lanes)
    return lane_total(lanes)
