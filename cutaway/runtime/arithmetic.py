"""Float32 arithmetic as the kernels do it, to the bit: what numpy has no function for, or adds in another
order (native/core/mathematics.inc).
"""

from __future__ import annotations

import numpy as np

LANES = 16
Floats = np.ndarray | np.float32


def fma(a: Floats, b: Floats, c: Floats) -> np.ndarray:
    """a b + c of float32 arrays, rounded once.

    A double holds the product exactly. Its sum is rounded twice, which matters only where the first rounding
    gives the midpoint of two floats: that one is moved towards what the first rounding lost.
    """
    product = np.multiply(a, b, dtype=np.float64)
    total = np.asarray(product + c)
    halfway = (total.view(np.int64) & 0x1FFFFFFF) == 0x10000000
    if halfway.any():  # seldom, and `nonzero` takes as long as the sum
        at = np.nonzero(halfway)
        terms, sums = np.broadcast_to(c, total.shape)[at].astype(np.float64), total[at]
        products = np.broadcast_to(product, total.shape)[at]
        back = sums - products
        lost = (products - (sums - back)) + (terms - back)
        total[at] = np.where(lost != 0, np.nextafter(sums, np.copysign(np.inf, lost)), sums)
    return total.astype(np.float32)


def lane_total(lanes: np.ndarray) -> np.ndarray:
    """The sum over the last axis [... 16]: the upper half is added to the lower one until one is left."""
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def exponential(x: np.ndarray) -> np.ndarray:
    """e^x within 2 units in the last place, for x from -87 to 88: 2^n e^r, e^r by a polynomial (Cephes)."""
    x = np.minimum(np.float32(88), np.maximum(np.float32(-87), x))
    n = np.rint(x * np.float32(1.44269504))
    r = fma(n, np.float32(2.12194440e-4), fma(n, np.float32(-0.693359375), x))
    y = np.float32(1.9875691500e-4)
    for term in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = fma(y, r, np.float32(term))
    return np.ldexp(fma(r * r, y, r) + np.float32(1), n.astype(np.int32))


def exp(x: np.ndarray) -> np.ndarray:
    """e^x computed in double and rounded once, as the kernels do where they need few."""
    return np.exp(x.astype(np.float64)).astype(np.float32)


def softcapped(x: np.ndarray, cap: float | None) -> np.ndarray:
    """cap tanh(x / cap), the tanh in double; x where there is no cap."""
    if not cap:
        return x
    return np.float32(cap) * np.tanh((x / np.float32(cap)).astype(np.float64)).astype(np.float32)


def rms_norm(x: np.ndarray, weight: Floats, eps: float) -> np.ndarray:
    """w x / sqrt(mean(x^2) + eps) over the last axis."""
    return x * _inverse_root(x, eps) * weight


def layer_norm(x: np.ndarray, weight: Floats, bias: Floats | None, eps: float) -> np.ndarray:
    """w (x - mean(x)) / sqrt(var(x) + eps) + bias over the last axis: numbers are added as squares are."""
    size = x.shape[-1]
    whole = size - size % LANES
    lanes = np.zeros((*x.shape[:-1], LANES), np.float32)
    for at in range(0, whole, LANES):
        lanes = lanes + x[..., at : at + LANES]
    total = lane_total(lanes)
    for at in range(whole, size):
        total = total + x[..., at]
    centred = x - (total / np.float32(size))[..., None]
    scaled = centred * _inverse_root(centred, eps) * weight
    return scaled if bias is None else scaled + bias


def unit(x: np.ndarray) -> np.ndarray:
    """x / sqrt(sum(x^2) + 1e-6) over the last axis."""
    return x * (np.float32(1) / np.sqrt(_squares(x) + np.float32(1e-6)))[..., None]


def _inverse_root(x: np.ndarray, eps: float) -> np.ndarray:
    """1 / sqrt(mean(x^2) + eps) [... 1]."""
    return (np.float32(1) / np.sqrt(_squares(x) / np.float32(x.shape[-1]) + np.float32(eps)))[..., None]


def _squares(x: np.ndarray) -> np.ndarray:
    """The sum of squares over the last axis: they are added sixteen apart, then what is left."""
    size = x.shape[-1]
    whole = size - size % LANES
    lanes = np.zeros((*x.shape[:-1], LANES), np.float32)
    for at in range(0, whole, LANES):
        lanes = fma(x[..., at : at + LANES], x[..., at : at + LANES], lanes)
    squares = lane_total(lanes)
    for at in range(whole, size):
        squares = squares + x[..., at] * x[..., at]
    return squares
