"""Matrix times vectors as the runtime does it: weights as their file has them, vectors as 8-bit numbers.

    y = sum over groups of 32:  (sum of w_q x_q) (scale_w scale_x) + least_w (scale_x sum of x_q)

A vector is rounded once for all matrices that read it: scale = max |x| / 127 of each 32 numbers, q = x /
scale to the nearest. Sums of products are whole numbers and exact; the groups are added in their order in
float32. native/runtime/matmul.cpp gives the same bits, on every instruction set, for every type but the
floats: F32 and F16 read vectors as they are, and BF16 reads them as bfloat16, whose products are exact; the
kernels add those in one order on every instruction set, numpy here in its own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cutaway.gguf import Packed
from cutaway.weights import quant

GROUP = 32
FLOATS = ("F32", "F16")  # these read vectors as they are, and BF16 as bfloat16
SILENT = np.float32(1e-30)  # a group no number of which is larger is zeros


class Rounded(NamedTuple):
    """Vectors in groups: q int8 [n g 32], scale float32 [n g]."""

    q: np.ndarray
    scale: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """float32 [n 32g]: the numbers that the products see."""
        n, groups, size = self.q.shape
        return (self.q * self.scale[..., None]).reshape(n, groups * size).astype(np.float32)


def quantize(x: np.ndarray) -> Rounded:
    """Vectors float32 [n d] rounded to eight bits; the last group is filled up with zeros."""
    n, size = x.shape
    groups = np.zeros((n, -(-size // GROUP) * GROUP), np.float32)
    groups[:, :size] = x
    groups = groups.reshape(n, -(-size // GROUP), GROUP)  # of no vectors at all too
    most = np.abs(groups).max(axis=-1)
    silent = ~(most > SILENT)
    inverse = np.where(silent, np.float32(0), np.float32(127) / np.where(silent, np.float32(1), most))
    scale = np.where(silent, np.float32(0), most / np.float32(127))
    return Rounded(np.rint(groups * inverse[..., None]).astype(np.int8), scale)


def reads_eight_bits(type: str) -> bool:
    """Whether a matrix of this type reads vectors rounded to eight bits: those of packed weights do."""
    return type not in (*FLOATS, "BF16")


def rounded(x: np.ndarray, type: str) -> np.ndarray:
    """The numbers [n d] that a matrix of this type sees in place of x."""
    if type in FLOATS:
        return x
    if type == "BF16":
        return quant.read_bf16(quant.write_bf16(np.ascontiguousarray(x, np.float32)))
    return quantize(x).values[:, : x.shape[1]]


def twice_rounded(x: np.ndarray, type: str) -> np.ndarray:
    """The numbers [n d] that a head of this type sees: where eight bits are read, x rounded and what that
    leaves of it rounded too.
    """
    first = rounded(x, type)
    return first + rounded(x - first, type) if reads_eight_bits(type) else first


def head_product(packed: Packed, x: np.ndarray) -> np.ndarray:
    """float32 [n rows]: W x as the head computes it, whose roundings nothing behind it evens out."""
    scores = product(packed, x)
    if not reads_eight_bits(packed.type):
        return scores
    return scores + product(packed, x - rounded(x, packed.type))


def product(packed: Packed, x: np.ndarray) -> np.ndarray:
    """float32 [n rows]: W x for vectors float32 [n columns], as the kernels compute it."""
    if not reads_eight_bits(packed.type):
        return rounded(x, packed.type) @ quant.unpack_reference(packed).T
    vectors = quantize(x)
    weights, scale, least = _whole(packed)
    groups, parts = vectors.q.shape[1], weights.shape[1]
    share = parts // groups  # 2 where sixteen weights have a scale of their own
    q = vectors.q.reshape(len(x), parts, -1).astype(np.int32)
    dot = np.einsum("rgk,ngk->nrg", weights.astype(np.int32), q)
    acc = np.zeros((len(x), packed.shape[0]), np.float32)
    whole = vectors.q.astype(np.int32).sum(axis=-1).astype(np.float32)
    shift = vectors.scale * whole
    for g in range(parts):
        of = g // share
        acc += dot[..., g].astype(np.float32) * (scale[:, g] * vectors.scale[:, of, None])
        if least is not None:
            acc += least[:, g] * shift[:, of, None]
    return acc


def _whole(packed: Packed) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Weights as whole numbers [rows parts k], and each part's scale and least, float32 [rows parts]."""
    rows = packed.shape[0]
    blocks = np.ascontiguousarray(packed.data).reshape(-1, quant.TYPES[packed.type].bytes)
    scale, least, values = _PARTS[packed.type](blocks)
    least = None if least is None else np.ascontiguousarray(least, np.float32).reshape(rows, -1)
    return values.reshape(rows, -1, values.shape[-1]), scale.reshape(rows, -1), least


def _q4_0(b: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    return quant._half(b, 0), None, quant._nibbles(b[:, 2:]) - 8


def _q4_1(b: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    return quant._half(b, 0), quant._half(b, 2), quant._nibbles(b[:, 4:])


def _q5_0(b: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    return quant._half(b, 0), None, (quant._nibbles(b[:, 6:]) | quant._fifth_bits(b[:, 2:6])) - 16


def _q5_1(b: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    return quant._half(b, 0), quant._half(b, 2), quant._nibbles(b[:, 8:]) | quant._fifth_bits(b[:, 4:8])


def _q8_0(b: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    return quant._half(b, 0), None, b[:, 2:].view(np.int8)


def _q4_k(b: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    scale, least = quant._scales_of_32(b)
    return scale, -least, quant._nibbles(b[:, 16:].reshape(-1, 32)).reshape(len(b), 8, 32)


def _q5_k(b: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    scale, least = quant._scales_of_32(b)
    fifth = np.stack([((b[:, 16:48] >> bit) & 1) << 4 for bit in range(8)], axis=1).view(np.int8)
    return scale, -least, quant._nibbles(b[:, 48:].reshape(-1, 32)).reshape(len(b), 8, 32) | fifth


def _q6_k(b: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    scale = quant._half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)
    low = quant._nibbles(b[:, :128].reshape(-1, 64)).reshape(len(b), 256)
    q = (low | quant._pairs_of_bits(b[:, 128:192]).view(np.int8) << 4) - 32
    return scale, None, q.reshape(len(b), 16, 16)


_PARTS = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
