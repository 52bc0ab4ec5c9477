"""float32 to packed weights by search: the scales with which rounding a block costs least.

    cost = sum over the block of w (x - packed x)^2

w says how much each column counts: the mean square of what a calibration text sends through it
(inspect/importance.py), or 1. ggml's reference quantizer (weights/quant.py) takes the scale from the largest
value; here several are tried. Given a scale, the nearest whole numbers q are best; given the q, the best
scale solves a linear equation; so each try rounds, solves, and rounds again, and the cheapest counts.
Super-blocks (Q4_K, Q6_K) have groups whose scales are whole numbers themselves: these move to a neighbour
where that is cheaper, in turn with the block's own scale.

The tries and the order of all sums are those of native/weights/quant_search.cpp, so that both give the
same bits. Arrays here are [k, n]: k values of n blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cutaway import native
from cutaway.errors import UserError
from cutaway.gguf import TYPES, Packed, packed_shape
from cutaway.weights import quant

F = np.float32
U8 = np.uint8
SILENT = F(1e-30)  # a scale no larger is nothing: its inverse would not be a number
ROUNDS = 2  # how often a super-block's own scales are solved for anew
SPANS = (15, *np.arange(12, 16.25, 0.5))  # what a block's range is divided by: first the plain way
# The least and largest whole number, and what the value of largest size is divided by, the plain way first.
FOUR = (-8, 7), (-8, *np.arange(-9, -6.25, 0.25), *np.arange(8.25, 5.75, -0.25))
FIVE = (-16, 15), (-16, *np.arange(-17, -13.25, 0.5), *np.arange(16, 12.75, -0.5))
SIX = (-32, 31), (-32, *np.arange(-33, -28.75, 0.5), *np.arange(32, 27.75, -0.5))
EIGHT = (-127, 127), (127, *np.arange(128, 123.75, -0.5))
Codes = tuple[tuple[int, int], tuple[float, ...]]
LEAST = 1e-4  # a column counts at least this fraction of the mean: no weight is free to be anything


def pack(array: np.ndarray, type: str, importance: np.ndarray | None = None) -> Packed:
    """The float32 array packed as a type of ``FITTED``; ``importance`` has a number of 0 or more a column.

    Raises UserError for rows that are not whole blocks, for weights that are not finite or too large, and for
    importance that does not fit."""
    if type not in FITTED:
        raise UserError(f"Weights are not fitted to {type!r}: use {', '.join(FITTED)}")
    array, importance = _checked(array, type, importance)
    if not native.available():
        return pack_reference(array, type, importance)
    out = np.empty(packed_shape(type, array.shape), U8)
    native.fit(type, array, importance, out)
    return Packed(type, array.shape, out)


def pack_reference(array: np.ndarray, type: str, importance: np.ndarray | None = None) -> Packed:
    """What ``pack`` computes, by numpy alone: slower, and the judge of the compiled kernels."""
    array, importance = _checked(array, type, importance)
    block = TYPES[type].block
    x = np.ascontiguousarray(array).reshape(-1, block).T
    weights = np.ones(array.shape, F) if importance is None else np.broadcast_to(importance, array.shape)
    with np.errstate(all="ignore"):  # tries that overflow cost more than any other
        blocks = FITTED[type](x, np.ascontiguousarray(weights, F).reshape(-1, block).T)
    return Packed(type, array.shape, blocks.reshape(packed_shape(type, array.shape)))


def _checked(
    array: np.ndarray, type: str, importance: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    columns = array.shape[-1] if array.shape else 1
    if array.dtype != np.float32:
        raise UserError(f"Only float32 arrays are packed, not {array.dtype}; convert it first.")
    if columns % TYPES[type].block:
        raise UserError(
            f"Rows of {columns} values cannot be packed as {type}, in blocks of {TYPES[type].block}"
        )
    if array.size and not np.abs(array).max() <= quant.HALF:
        raise UserError("A weight is infinite, NaN or beyond 65504; write this tensor as BF16 or F32.")
    if importance is None:
        return np.ascontiguousarray(array), None
    if importance.shape != (columns,) or not (np.isfinite(importance) & (importance >= 0)).all():
        raise UserError(f"The importance of {columns} columns must be as many finite numbers of 0 or more.")
    mean = importance.mean(dtype=np.float64)
    relative = importance / mean if mean > 0 else np.ones(columns)
    return np.ascontiguousarray(array), np.maximum(relative, LEAST).astype(F)


# What the searches are made of.


def code(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The nearest whole numbers from low to high, halves to even."""
    return np.rint(np.clip(values, F(low), F(high)))


def inverse(scale: np.ndarray) -> np.ndarray:
    """1 / scale, and 0 for a scale that is nothing."""
    return np.where(np.abs(scale) > SILENT, F(1) / scale, F(0))


def halved(values: np.ndarray) -> np.ndarray:
    """As a half can say it."""
    return values.astype(np.float16).astype(F)


def total(terms: np.ndarray) -> np.ndarray:
    """The sum over the first axis, in its order, in float32."""
    out = np.zeros(terms.shape[1:], F)
    for term in terms:
        out += term
    return out


def cheapest(tries: list[tuple[np.ndarray, tuple[np.ndarray, ...]]]) -> tuple[np.ndarray, ...]:
    """Of several (cost [n], numbers of that try), block by block the cheapest: the first of equals.

    Cost comes first in the result; where every cost is infinite or no number, the numbers are zeros."""
    least = np.full_like(tries[0][0], np.inf)
    best = tuple(np.zeros_like(each) for each in tries[0][1])
    for cost, numbers in tries:
        better = cost < least
        best = tuple(np.where(better, new, old) for new, old in zip(numbers, best, strict=True))
        least = np.where(better, cost, least)
    return least, *best


def symmetric(x: np.ndarray, w: np.ndarray, codes: Codes, halves: bool) -> np.ndarray:
    """The scale [n] with which scale * q is nearest to x [k n]."""
    (low, high), divisors = codes
    most = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    tries = []
    for divisor in divisors:
        q = code(x * inverse(most / F(divisor)), low, high)
        xq, qq = total(w * x * q), total(w * q * q)
        scale = np.where(qq > 0, xq / qq, F(0))
        scale = halved(scale) if halves else scale
        tries.append((_off(x, w, scale, low, high), (scale,)))
    return cheapest(tries)[1]


def _off(x: np.ndarray, w: np.ndarray, scale: np.ndarray, low: int, high: int) -> np.ndarray:
    off = x - scale * code(x * inverse(scale), low, high)
    return total(w * off * off)


def affine(x: np.ndarray, w: np.ndarray, below: bool, halves: bool) -> tuple[np.ndarray, np.ndarray]:
    """The scale and least value [n] with which scale * q + least, q from 0 to 15, is nearest to x [32 n].

    ``below``: the least value may not be above zero."""
    start, end = x.min(axis=0), x.max(axis=0)
    start = np.minimum(start, F(0)) if below else start
    tries = []
    for n, span in enumerate(SPANS):
        scale = (end - start) / F(span)
        low = (start + end) * F(0.5) - scale * F(7.5)
        low = np.where(below & (low > 0), F(0), low)
        for _ in range(2 if n else 0):
            scale, low = _solved(x, w, scale, low, below)
        if halves:
            scale, low = halved(scale), halved(low) + F(0)
        tries.append((_cost(x, w, scale, low), (scale, low)))
    _, scale, low = cheapest(tries)
    return scale, low


def _solved(
    x: np.ndarray, w: np.ndarray, scale: np.ndarray, low: np.ndarray, below: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The best scale and least value for the q that these make; these, where there are none."""
    q = code((x - low) * inverse(scale), 0, 15)
    wx, wq = w * x, w * q
    sw, sx, sq, sxq, sqq = total(w), total(wx), total(wq), total(wx * q), total(wq * q)
    whole = sw * sqq - sq * sq
    fitted, start = (sw * sxq - sx * sq) / whole, (sqq * sx - sq * sxq) / whole
    above = below & (start > 0)
    found = np.where(above, np.where(sqq > 0, sxq / sqq, F(0)), fitted)
    sound = (whole > 0) & (found > 0)
    return np.where(sound, found, scale), np.where(sound, np.where(above, F(0), start), low)


def _cost(x: np.ndarray, w: np.ndarray, scale: np.ndarray, low: np.ndarray) -> np.ndarray:
    off = x - (scale * code((x - low) * inverse(scale), 0, 15) + low)
    return total(w * off * off)


# One function a type: x and w [block n] to uint8 [n bytes], laid out as weights/quant.py reads them.


def fit_q4_0(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """One scale for 32 values."""
    scale = symmetric(x, w, FOUR, halves=True)
    q = code(x * inverse(scale), -8, 7) + 8
    return np.concatenate([_halves(scale), quant.joined(_bytes(q))], axis=1)


def fit_q5_0(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """One scale for 32 values."""
    scale = symmetric(x, w, FIVE, halves=True)
    q = _bytes(code(x * inverse(scale), -16, 15) + 16)
    fifth = np.packbits(q >> 4, axis=1, bitorder="little")
    return np.concatenate([_halves(scale), fifth, quant.joined(q & 15)], axis=1)


def fit_q8_0(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """One scale for 32 values."""
    scale = symmetric(x, w, EIGHT, halves=True)
    q = code(x * inverse(scale), -127, 127).T.astype(np.int8)
    return np.concatenate([_halves(scale), np.ascontiguousarray(q).view(U8)], axis=1)


def fit_q4_1(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """A scale and a least value for 32 values."""
    scale, low = affine(x, w, below=False, halves=True)
    q = code((x - low) * inverse(scale), 0, 15)
    return np.concatenate([_halves(scale), _halves(low), quant.joined(_bytes(q))], axis=1)


def fit_q4_k(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Eight groups of 32: scale s and least t, six bits each, in units of two halves."""
    x, w = x.reshape(8, 32, -1), w.reshape(8, 32, -1)
    found = [affine(a, b, below=True, halves=False) for a, b in zip(x, w, strict=True)]
    d, m = np.stack([scale for scale, _ in found]), np.stack([F(0) - low for _, low in found])
    scale, least = halved(np.maximum(d.max(0), F(0)) / F(63)), halved(np.maximum(m.max(0), F(0)) / F(63))
    s, t = code(d * inverse(scale), 0, 63), code(m * inverse(least), 0, 63)
    best = _settled_q4_k(x, w, scale, least, s, t)
    for _ in range(ROUNDS):
        other = _settled_q4_k(x, w, *_refitted_q4_k(x, w, *best[1:]), *best[3:])
        best = cheapest([(best[0], best[1:]), (other[0], other[1:])])
    _, scale, least, s, t = best
    q = _bytes(code((x + (least * t)[:, None]) * inverse(scale * s)[:, None], 0, 15).reshape(256, -1))
    return np.concatenate(
        [_halves(scale), _halves(least), _six_bits(_bytes(s), _bytes(t)), _nibbles(q)], axis=1
    )


def _settled_q4_k(
    x: np.ndarray, w: np.ndarray, scale: np.ndarray, least: np.ndarray, s: np.ndarray, t: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Cost, the block's scales, and each group's s and t: the cheapest of themselves and their neighbours."""
    costs, every_s, every_t = [], [], []
    for a, b, group_s, group_t in zip(x, w, s, t, strict=True):
        tries = []
        for ds in (-1, 0, 1):
            for dt in (-1, 0, 1):
                now_s, now_t = code(group_s + F(ds), 0, 63), code(group_t + F(dt), 0, 63)
                tries.append((_cost(a, b, scale * now_s, -(least * now_t)), (now_s, now_t)))
        cost, now_s, now_t = cheapest(tries)
        costs.append(cost)
        every_s.append(now_s)
        every_t.append(now_t)
    return total(np.stack(costs)), scale, least, np.stack(every_s), np.stack(every_t)


def _refitted_q4_k(
    x: np.ndarray, w: np.ndarray, scale: np.ndarray, least: np.ndarray, s: np.ndarray, t: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The block's scales [n] solved for with s, t and q as they are: x is about scale (s q) + least (-t)."""
    q = code((x + (least * t)[:, None]) * inverse(scale * s)[:, None], 0, 15)
    a = (s[:, None] * q).reshape(256, -1)
    b = np.broadcast_to(-t[:, None], x.shape).reshape(256, -1)
    x, w = x.reshape(256, -1), w.reshape(256, -1)
    wa, wb = w * a, w * b
    aa, ab, bb, xa, xb = total(wa * a), total(wa * b), total(wb * b), total(wa * x), total(wb * x)
    determinant = aa * bb - ab * ab
    d, m = (xa * bb - xb * ab) / determinant, (xb * aa - xa * ab) / determinant
    sound = (determinant > 0) & (d > 0) & (m >= 0)
    return np.where(sound, halved(d), scale), np.where(sound, halved(m), least)


def fit_q6_k(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Sixteen groups of 16: a signed scale s of eight bits, in units of a half."""
    x, w = x.reshape(16, 16, -1), w.reshape(16, 16, -1)
    d = np.stack([symmetric(a, b, SIX, halves=False) for a, b in zip(x, w, strict=True)])
    most = np.take_along_axis(d, np.abs(d).argmax(axis=0)[None], axis=0)[0]
    scale = halved(most / F(-128))
    best = _settled_q6_k(x, w, scale, code(d * inverse(scale), -128, 127))
    for _ in range(ROUNDS):
        other = _settled_q6_k(x, w, _refitted_q6_k(x, w, *best[1:]), best[2])
        best = cheapest([(best[0], best[1:]), (other[0], other[1:])])
    _, scale, s = best
    q = _bytes(code(x * inverse(scale * s)[:, None], -32, 31).reshape(256, -1) + 32)
    scales = np.ascontiguousarray(s.T.astype(np.int8)).view(U8)
    return np.concatenate([_nibbles_of_64(q & 15), _pairs(q >> 4), scales, _halves(scale)], axis=1)


def _settled_q6_k(x: np.ndarray, w: np.ndarray, scale: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, ...]:
    costs, every = [], []
    for a, b, group in zip(x, w, s, strict=True):
        steps = [code(group + F(step), -128, 127) for step in (-1, 0, 1)]
        cost, now = cheapest([(_off(a, b, scale * now, -32, 31), (now,)) for now in steps])
        costs.append(cost)
        every.append(now)
    return total(np.stack(costs)), scale, np.stack(every)


def _refitted_q6_k(x: np.ndarray, w: np.ndarray, scale: np.ndarray, s: np.ndarray) -> np.ndarray:
    a = (s[:, None] * code(x * inverse(scale * s)[:, None], -32, 31)).reshape(256, -1)
    x, w = x.reshape(256, -1), w.reshape(256, -1)
    wa = w * a
    aa, xa = total(wa * a), total(wa * x)
    return np.where(aa > 0, halved(xa / aa), scale)


# Bytes.


def _bytes(q: np.ndarray) -> np.ndarray:
    """Whole numbers [k n] as uint8 [n k]."""
    return np.ascontiguousarray(q.T.astype(U8))


def _halves(column: np.ndarray) -> np.ndarray:
    return column.astype("<f2").view(U8).reshape(-1, 2)


def _six_bits(s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Eight scales and eight minima in twelve bytes, as quant.py's ``six_bits`` reads them."""
    upper = [s[:, :4] | s[:, 4:] >> 4 << 6, t[:, :4] | t[:, 4:] >> 4 << 6]
    return np.concatenate([*upper, s[:, 4:] & 15 | (t[:, 4:] & 15) << 4], axis=1)


def _nibbles(q: np.ndarray) -> np.ndarray:
    """Of each 64 values, 32 in the low nibbles and 32 in the high ones: uint8 [n 128] of [n 256]."""
    pairs = q.reshape(-1, 4, 2, 32)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)


def _nibbles_of_64(q: np.ndarray) -> np.ndarray:
    """Of each 128 values, 64 in the low nibbles and 64 in the high ones: uint8 [n 128] of [n 256]."""
    pairs = q.reshape(-1, 2, 2, 64)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)


def _pairs(q: np.ndarray) -> np.ndarray:
    """Of each 128 values, four in each of 32 bytes, the lowest bits first: uint8 [n 64] of [n 256]."""
    fours = q.reshape(-1, 2, 4, 32) << np.array([0, 2, 4, 6], U8)[:, None]
    return np.bitwise_or.reduce(fours, axis=2).reshape(-1, 64)


FITTED: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Q8_0": fit_q8_0,
    "Q4_0": fit_q4_0,
    "Q4_1": fit_q4_1,
    "Q5_0": fit_q5_0,
    "Q4_K": fit_q4_k,
    "Q6_K": fit_q6_k,
}
