"""float32 to packed weights by search: the scales with which rounding a block costs least.

    cost = sum over the block of w (x - packed x)^2

w says how much each column counts: the mean square of what a calibration text sends through it
(inspect/importance.py), or 1. ggml's reference quantizer (formats.py) takes the scale from the largest
value; here several are tried. Given a scale, the nearest whole numbers q are best; given the q, the best
scale solves a linear equation; so each try rounds, solves, and rounds again, and the cheapest counts.
Super-blocks (the K types, IQ4_XS) have groups whose scales are whole numbers themselves: these move to a
neighbour where that is cheaper, in turn with the block's own scale.

native/weights/quant_search.cpp tries the same scales and adds in the same order, so both give the same
bits. Arrays here are [k n]: k values of n blocks, or [k groups n].
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np

from cutaway import native
from cutaway.errors import UserError
from cutaway.gguf import TYPES, Packed, packed_shape
from cutaway.quantization import formats

F = np.float32
U8 = np.uint8
SILENT = F(1e-30)  # a scale no larger is nothing: its inverse would not be a number
ROUNDS = 2  # how often a super-block's own scales are solved for anew


class Codes(NamedTuple):
    """What a value in units of its scale is rounded to, and what the value of largest size is divided by."""

    nearest: Callable[[np.ndarray], np.ndarray]
    index: Callable[[np.ndarray], np.ndarray]
    divisors: tuple[float, ...]


class Range(NamedTuple):
    """The largest whole number of a type with a least value, and what the range of values is divided by."""

    high: int
    spans: tuple[float, ...]


def whole(low: int, high: int, *divisors: float) -> Codes:
    """Whole numbers from low to high; what is stored is how far above low."""
    return Codes(lambda values: code(values, low, high), lambda q: q - F(low), divisors)


def code(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The nearest whole numbers from low to high, halves to even."""
    return np.rint(np.clip(values, F(low), F(high)))


def steps(first: float, last: float, step: float) -> tuple[float, ...]:
    """Numbers from first to last, both among them."""
    return tuple(np.arange(first, last + step / 2, step).tolist())


# The plain way of rounding is tried first.
THREE = whole(-4, 3, -4, *steps(-4.75, -4.25, 0.25), *steps(-3.75, -2.5, 0.25), *steps(4, 2, -0.25))
FOUR = whole(-8, 7, -8, *steps(-9, -8.25, 0.25), *steps(-7.75, -6.5, 0.25), *steps(8.25, 6, -0.25))
FIVE = whole(-16, 15, -16, *steps(-17, -16.5, 0.5), *steps(-15.5, -13.5, 0.5), *steps(16, 13, -0.5))
SIX = whole(-32, 31, -32, *steps(-33, -32.5, 0.5), *steps(-31.5, -29, 0.5), *steps(32, 28, -0.5))
EIGHT = whole(-127, 127, 127, *steps(128, 127.5, -0.5), *steps(126.5, 124, -0.5))
# IQ4's sixteen levels, closer together near zero. A value half way between two goes to the lower.
LEVELS = formats.LEVELS.astype(F)
IQ4 = Codes(
    lambda values: LEVELS[np.searchsorted((LEVELS[1:] + LEVELS[:-1]) / 2, values)],
    lambda q: np.searchsorted(LEVELS, q),
    (-127, *steps(-135, -131, 4), *steps(-123, -99, 4), *steps(121, 89, -4)),
)
TO_3 = Range(3, steps(1.5, 3.5, 0.25))
TO_15 = Range(15, steps(12, 16, 0.5))
TO_31 = Range(31, steps(27, 32, 0.5))
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
    if array.size and not np.abs(array).max() <= formats.HALF:
        raise UserError("A weight is infinite, NaN or beyond 65504; write this tensor as BF16 or F32.")
    if importance is None:
        return np.ascontiguousarray(array), None
    if importance.shape != (columns,) or not (np.isfinite(importance) & (importance >= 0)).all():
        raise UserError(f"The importance of {columns} columns must be as many finite numbers of 0 or more.")
    mean = importance.mean(dtype=np.float64)
    relative = importance / mean if mean > 0 else np.ones(columns)
    return np.ascontiguousarray(array), np.maximum(relative, LEAST).astype(F)


# The parts of the searches.


def inverse(scale: np.ndarray) -> np.ndarray:
    """1 / scale, and 0 for a scale that is nothing."""
    return np.where(np.abs(scale) > SILENT, F(1) / scale, F(0))


def halved(values: np.ndarray) -> np.ndarray:
    """Rounded to a half."""
    return values.astype(np.float16).astype(F)


def total(terms: np.ndarray) -> np.ndarray:
    """The sum over the first axis, in its order, in float32."""
    out = np.zeros(terms.shape[1:], F)
    for term in terms:
        out += term
    return out


def cheapest(tries: list[tuple[np.ndarray, tuple[np.ndarray, ...]]]) -> tuple[np.ndarray, ...]:
    """The cheapest of several tries (cost [n], numbers), block by block; the first of equals.

    Cost comes first in the result; where every cost is infinite or NaN, the numbers are zeros."""
    least = np.full_like(tries[0][0], np.inf)
    best = tuple(np.zeros_like(each) for each in tries[0][1])
    for cost, numbers in tries:
        better = cost < least
        best = tuple(np.where(better, new, old) for new, old in zip(numbers, best, strict=True))
        least = np.where(better, cost, least)
    return least, *best


def symmetric(x: np.ndarray, w: np.ndarray, codes: Codes, halves: bool) -> np.ndarray:
    """The scale [n] with which scale * q is nearest to x [k n]."""
    most = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    tries = []
    for divisor in codes.divisors:
        q = codes.nearest(x * inverse(most / F(divisor)))
        xq, qq = total(w * x * q), total(w * q * q)
        scale = np.where(qq > 0, xq / qq, F(0))
        scale = halved(scale) if halves else scale
        tries.append((_off(x, w, scale, codes), (scale,)))
    return cheapest(tries)[1]


def _off(x: np.ndarray, w: np.ndarray, scale: np.ndarray, codes: Codes) -> np.ndarray:
    off = x - scale * codes.nearest(x * inverse(scale))
    return total(w * off * off)


def affine(
    x: np.ndarray, w: np.ndarray, to: Range, below: bool, halves: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The scale and least value [n] with which scale * q + least, q from 0 to high, is nearest to x [k n].

    The first try is the plain rounding from the least to the largest value, left as it is; in the others the
    values begin with the whole numbers, share their middle, or end with them. ``below``: the least value may
    not be above zero."""
    start, end = x.min(axis=0), x.max(axis=0)
    start = np.minimum(start, F(0)) if below else start
    high, tries = to.high, []
    for n, (span, align) in enumerate([(to.high, 0), *product(to.spans, (0, 0.5, 1))]):
        scale = (end - start) / F(span)
        low = start + F(align) * ((end - start) - scale * F(high))
        low = np.where(below & (low > 0), F(0), low)
        if n:
            scale, low = _solved(x, w, *_solved(x, w, scale, low, high, below), high, below)
        if halves:
            scale, low = halved(scale), halved(low) + F(0)
        tries.append((_cost(x, w, scale, low, high), (scale, low)))
    _, scale, low = cheapest(tries)
    return scale, low


def _solved(
    x: np.ndarray, w: np.ndarray, scale: np.ndarray, low: np.ndarray, high: float, below: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The best scale and least value for the q that these make; these, where there are none."""
    q = code((x - low) * inverse(scale), 0, high)
    wx, wq = w * x, w * q
    sw, sx, sq, sxq, sqq = total(w), total(wx), total(wq), total(wx * q), total(wq * q)
    whole = sw * sqq - sq * sq
    fitted, start = (sw * sxq - sx * sq) / whole, (sqq * sx - sq * sxq) / whole
    above = below & (start > 0)
    found = np.where(above, np.where(sqq > 0, sxq / sqq, F(0)), fitted)
    sound = (whole > 0) & (found > 0)
    return np.where(sound, found, scale), np.where(sound, np.where(above, F(0), start), low)


def _cost(x: np.ndarray, w: np.ndarray, scale: np.ndarray, low: np.ndarray, high: float) -> np.ndarray:
    off = x - (scale * code((x - low) * inverse(scale), 0, high) + low)
    return total(w * off * off)


def affine_groups(x: np.ndarray, w: np.ndarray, to: Range, groups: int, most: int) -> tuple[np.ndarray, ...]:
    """Blocks [256 n] of groups with a scale s and a least value t, whole numbers up to ``most``.

    The block's two units [n], s and t uint8 [n groups], and q uint8 [n 256]."""
    x, w = _grouped(x, groups), _grouped(w, groups)
    d, low = affine(x, w, to, below=True, halves=False)
    m = F(0) - low
    scale, least = (halved(np.maximum(each.max(axis=0), F(0)) / F(most)) for each in (d, m))
    s, t = code(d * inverse(scale), 0, most), code(m * inverse(least), 0, most)
    best = _settled_affine(x, w, to.high, most, scale, least, s, t)
    for _ in range(ROUNDS):
        units = _refitted_affine(x, w, to.high, *best[1:])
        other = _settled_affine(x, w, to.high, most, *units, *best[3:])
        best = cheapest([(best[0], best[1:]), (other[0], other[1:])])
    _, scale, least, s, t = best
    q = code((x + least * t) * inverse(scale * s), 0, to.high)
    return scale, least, _bytes(s), _bytes(t), _bytes(_in_order(q))


def _settled_affine(
    x: np.ndarray,
    w: np.ndarray,
    high: float,
    most: int,
    scale: np.ndarray,
    least: np.ndarray,
    s: np.ndarray,
    t: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Cost, the block's units, and each group's s and t: the cheapest of themselves and their neighbours."""
    tries = []
    for ds, dt in product((-1, 0, 1), repeat=2):
        now_s, now_t = code(s + F(ds), 0, most), code(t + F(dt), 0, most)
        tries.append((_cost(x, w, scale * now_s, -(least * now_t), high), (now_s, now_t)))
    cost, s, t = cheapest(tries)
    return total(cost), scale, least, s, t


def _refitted_affine(
    x: np.ndarray,
    w: np.ndarray,
    high: float,
    scale: np.ndarray,
    least: np.ndarray,
    s: np.ndarray,
    t: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The block's units [n] solved for with s, t and q as they are: x is about scale (s q) + least (-t)."""
    q = code((x + least * t) * inverse(scale * s), 0, high)
    a, b = _in_order(s * q), _in_order(np.broadcast_to(-t, x.shape))
    x, w = _in_order(x), _in_order(w)
    wa, wb = w * a, w * b
    aa, ab, bb, xa, xb = total(wa * a), total(wa * b), total(wb * b), total(wa * x), total(wb * x)
    determinant = aa * bb - ab * ab
    d, m = (xa * bb - xb * ab) / determinant, (xb * aa - xa * ab) / determinant
    sound = (determinant > 0) & (d > 0) & (m >= 0)
    return np.where(sound, halved(d), scale), np.where(sound, halved(m), least)


def symmetric_groups(
    x: np.ndarray, w: np.ndarray, codes: Codes, groups: int, low: int
) -> tuple[np.ndarray, ...]:
    """Blocks [256 n] of groups with a whole scale s from ``low`` to -low - 1.

    The block's unit [n], s int8 [n groups], and what is stored of the values, uint8 [n 256]."""
    x, w = _grouped(x, groups), _grouped(w, groups)
    d = symmetric(x, w, codes, halves=False)
    most = np.take_along_axis(d, np.abs(d).argmax(axis=0)[None], axis=0)[0]
    scale = halved(most / F(low))
    best = _settled(x, w, codes, low, scale, code(d * inverse(scale), low, -low - 1))
    for _ in range(ROUNDS):
        other = _settled(x, w, codes, low, _refitted(x, w, codes, *best[1:]), best[2])
        best = cheapest([(best[0], best[1:]), (other[0], other[1:])])
    _, scale, s = best
    q = codes.index(codes.nearest(x * inverse(scale * s)))
    return scale, np.ascontiguousarray(s.T.astype(np.int8)), _bytes(_in_order(q))


def _settled(
    x: np.ndarray, w: np.ndarray, codes: Codes, low: int, scale: np.ndarray, s: np.ndarray
) -> tuple[np.ndarray, ...]:
    tries = [code(s + F(step), low, -low - 1) for step in (-1, 0, 1)]
    cost, s = cheapest([(_off(x, w, scale * now, codes), (now,)) for now in tries])
    return total(cost), scale, s


def _refitted(x: np.ndarray, w: np.ndarray, codes: Codes, scale: np.ndarray, s: np.ndarray) -> np.ndarray:
    a = _in_order(s * codes.nearest(x * inverse(scale * s)))
    x, w = _in_order(x), _in_order(w)
    wa = w * a
    aa, xa = total(wa * a), total(wa * x)
    return np.where(aa > 0, halved(xa / aa), scale)


def _grouped(values: np.ndarray, groups: int) -> np.ndarray:
    """Blocks [256 n] as [k groups n]: value k of each group."""
    return np.ascontiguousarray(values.reshape(groups, 256 // groups, -1).swapaxes(0, 1))


def _in_order(values: np.ndarray) -> np.ndarray:
    """Undo ``_grouped``: blocks again."""
    return values.swapaxes(0, 1).reshape(256, -1)


# One function a type: x and w [block n] to uint8 [n bytes], laid out as quantization/formats.py reads them.


def fit_q4_0(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """One scale for 32 values."""
    scale, q = _one_scale(x, w, FOUR)
    return np.concatenate([_halves(scale), formats.joined(q)], axis=1)


def fit_iq4_nl(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """One scale for 32 values, which are levels of a table."""
    scale, q = _one_scale(x, w, IQ4)
    return np.concatenate([_halves(scale), formats.joined(q)], axis=1)


def fit_q5_0(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """One scale for 32 values."""
    scale, q = _one_scale(x, w, FIVE)
    return np.concatenate([_halves(scale), _fifth_bits(q), formats.joined(q & 15)], axis=1)


def fit_q8_0(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """One scale for 32 values."""
    scale = symmetric(x, w, EIGHT, halves=True)
    q = EIGHT.nearest(x * inverse(scale)).T.astype(np.int8)
    return np.concatenate([_halves(scale), np.ascontiguousarray(q).view(U8)], axis=1)


def fit_q4_1(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """A scale and a least value for 32 values."""
    scale, low, q = _scale_and_least(x, w, TO_15)
    return np.concatenate([_halves(scale), _halves(low), formats.joined(q)], axis=1)


def fit_q5_1(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """A scale and a least value for 32 values."""
    scale, low, q = _scale_and_least(x, w, TO_31)
    return np.concatenate([_halves(scale), _halves(low), _fifth_bits(q), formats.joined(q & 15)], axis=1)


def _one_scale(x: np.ndarray, w: np.ndarray, codes: Codes) -> tuple[np.ndarray, np.ndarray]:
    scale = symmetric(x, w, codes, halves=True)
    return scale, _bytes(codes.index(codes.nearest(x * inverse(scale))))


def _scale_and_least(x: np.ndarray, w: np.ndarray, to: Range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scale, low = affine(x, w, to, below=False, halves=True)
    return scale, low, _bytes(code((x - low) * inverse(scale), 0, to.high))


def fit_q2_k(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Sixteen groups of 16: scale and least value, four bits each, in units of two halves."""
    scale, least, s, t, q = affine_groups(x, w, TO_3, groups=16, most=15)
    return np.concatenate([s | t << 4, _pairs(q), _halves(scale), _halves(least)], axis=1)


def fit_q3_k(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Sixteen groups of 16: a signed scale of six bits in units of a half."""
    scale, s, q = symmetric_groups(x, w, THREE, groups=16, low=-32)
    six = (s + np.int8(32)).view(U8)
    low = (six & 15)[:, :8] | (six & 15)[:, 8:] << 4
    scales = np.concatenate([low, _two_bits((six >> 4).reshape(-1, 4, 4))], axis=1)
    return np.concatenate([_bit_planes(q >> 2), _pairs(q & 3), scales, _halves(scale)], axis=1)


def fit_q4_k(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Eight groups of 32: scale and least value, six bits each, in units of two halves."""
    scale, least, s, t, q = affine_groups(x, w, TO_15, groups=8, most=63)
    return np.concatenate([_halves(scale), _halves(least), _six_bits(s, t), _nibbles(q, 32)], axis=1)


def fit_q5_k(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Eight groups of 32: scale and least value, six bits each, in units of two halves."""
    scale, least, s, t, q = affine_groups(x, w, TO_31, groups=8, most=63)
    bits = [_six_bits(s, t), _bit_planes(q >> 4), _nibbles(q & 15, 32)]
    return np.concatenate([_halves(scale), _halves(least), *bits], axis=1)


def fit_q6_k(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Sixteen groups of 16: a signed scale of eight bits, in units of a half."""
    scale, s, q = symmetric_groups(x, w, SIX, groups=16, low=-128)
    return np.concatenate([_nibbles(q & 15, 64), _pairs(q >> 4), s.view(U8), _halves(scale)], axis=1)


def fit_iq4_xs(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Eight groups of 32: a signed scale of six bits in units of a half; values are levels of a table."""
    scale, s, q = symmetric_groups(x, w, IQ4, groups=8, low=-32)
    six = (s + np.int8(32)).view(U8)
    high = _two_bits((six >> 4).reshape(-1, 2, 4).swapaxes(1, 2))
    low = (six & 15)[:, ::2] | (six & 15)[:, 1::2] << 4
    return np.concatenate([_halves(scale), high, low, _nibbles(q, 16)], axis=1)


# Bytes.


def _bytes(q: np.ndarray) -> np.ndarray:
    """Whole numbers [k n] as uint8 [n k]."""
    return np.ascontiguousarray(q.T.astype(U8))


def _halves(column: np.ndarray) -> np.ndarray:
    return column.astype("<f2").view(U8).reshape(-1, 2)


def _six_bits(s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Eight scales and eight minima in twelve bytes, as formats.py's ``six_bits`` reads them."""
    upper = [s[:, :4] | s[:, 4:] >> 4 << 6, t[:, :4] | t[:, 4:] >> 4 << 6]
    return np.concatenate([*upper, s[:, 4:] & 15 | (t[:, 4:] & 15) << 4], axis=1)


def _nibbles(q: np.ndarray, size: int) -> np.ndarray:
    """Pack 2 size values in size bytes, the first half in the low nibbles: [n 256] to uint8 [n 128]."""
    pairs = q.reshape(len(q), -1, 2, size)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)


def _pairs(q: np.ndarray) -> np.ndarray:
    """Pack 128 values of 2 bits in 32 bytes, the lowest bits first: [n 256] to uint8 [n 64]."""
    return np.concatenate([_two_bits(half.reshape(len(q), 4, 32)) for half in np.split(q, 2, axis=1)], axis=1)


def _two_bits(q: np.ndarray) -> np.ndarray:
    """Four numbers of two bits in a byte, the lowest bits first: uint8 [n k] of [n 4 k]."""
    return np.bitwise_or.reduce(q << np.array([0, 2, 4, 6], U8)[:, None], axis=1)


def _bit_planes(bits: np.ndarray) -> np.ndarray:
    """Bit i of byte j is that of value 32 i + j: uint8 [n 32] of [n 256]."""
    return np.bitwise_or.reduce(bits.reshape(-1, 8, 32) << np.arange(8, dtype=U8)[:, None], axis=1)


def _fifth_bits(q: np.ndarray) -> np.ndarray:
    return np.packbits(q >> 4, axis=1, bitorder="little")


FITTED: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Q8_0": fit_q8_0,
    "Q4_0": fit_q4_0,
    "Q4_1": fit_q4_1,
    "Q5_0": fit_q5_0,
    "Q5_1": fit_q5_1,
    "Q2_K": fit_q2_k,
    "Q3_K": fit_q3_k,
    "Q4_K": fit_q4_k,
    "Q5_K": fit_q5_k,
    "Q6_K": fit_q6_k,
    "IQ4_NL": fit_iq4_nl,
    "IQ4_XS": fit_iq4_xs,
}
