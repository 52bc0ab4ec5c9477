"""Matrix times vectors as the runtime does it: weights as their file has them, vectors as 8-bit numbers.

    y = sum over groups of 32:  (sum of w_q x_q) (scale_w scale_x) + least_w (scale_x sum of x_q)

A vector is rounded once for all matrices that read it: scale = max |x| / 127 of each 32 numbers, q = x /
scale to the nearest. Sums of products are whole numbers and exact; the groups are added in their order in
float32. A K type's scales are whole numbers under one half for 256 weights: a block's groups are added by
those, and the block by its half. F32 and F16 read vectors as they are, and BF16 reads them as bfloat16. The
reference implementation of native/runtime/matmul.cpp: every instruction set gives its bits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cutaway.gguf import Packed
from cutaway.quantization import formats
from cutaway.runtime.arithmetic import fma

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
        return formats.read_bf16(formats.write_bf16(np.ascontiguousarray(x, np.float32)))
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
        return _float_product(packed, rounded(x, packed.type))
    vectors = quantize(x)
    if packed.type in formats.WHOLE_PARTS:
        return _k_product(packed, vectors)
    scale, least, q = formats.parts(packed)
    shift = vectors.scale * vectors.q.sum(axis=-1, dtype=np.int32).astype(np.float32)
    parts = scale.shape[1] // vectors.scale.shape[1]  # 2 where sixteen weights have a scale of their own
    inputs = vectors.q.reshape(len(x), scale.shape[1], q.shape[2]).astype(np.float32)
    acc = np.zeros((len(x), len(q)), np.float32)
    for part in range(scale.shape[1]):
        dot = inputs[:, part] @ q[:, part].T.astype(np.float32)  # whole numbers below 2^24: exact
        acc += dot * (scale[:, part] * vectors.scale[:, part // parts, None])
        if least is not None:
            acc += least[:, part] * shift[:, part // parts, None]
    return acc


def _k_product(packed: Packed, vectors: Rounded) -> np.ndarray:
    """W x of a K type: groups are added by whole scales and minima, fused, and a block by its halves."""
    d, dmin, s, m, q = formats.whole_parts(packed)
    n, rows, parts = len(vectors.q), len(q), s.shape[2] // 8  # parts of a group of 32
    shift = vectors.scale * vectors.q.sum(axis=-1, dtype=np.int32).astype(np.float32)
    inputs = vectors.q.reshape(n, d.shape[1], s.shape[2], q.shape[3]).astype(np.float32)
    acc = np.zeros((n, rows), np.float32)
    for block in range(d.shape[1]):
        scaled, least = np.zeros((n, rows), np.float32), np.zeros((n, rows), np.float32)
        for group in range(8):
            at = 8 * block + group
            dot = np.zeros((n, rows), np.float32)
            for part in range(parts * group, parts * (group + 1)):  # whole numbers below 2^24: exact
                weights = q[:, block, part].T.astype(np.float32)
                dot += (inputs[:, block, part] @ weights) * s[:, block, part].astype(np.float32)
            scaled = fma(dot, vectors.scale[:, at, None], scaled)
            if m is not None and m.shape[2] == 8:
                least = fma(m[:, block, group].astype(np.float32), shift[:, at, None], least)
            elif m is not None:  # of each half of the group: whole numbers too
                sums = vectors.q[:, at].reshape(n, 2, -1).sum(axis=-1).astype(np.float32)
                weighed = sums @ m[:, block, 2 * group : 2 * group + 2].T.astype(np.float32)
                least = fma(weighed, vectors.scale[:, at, None], least)
        acc += scaled * d[:, block]
        if dmin is not None:
            acc -= least * dmin[:, block]
    return acc


def _float_product(packed: Packed, x: np.ndarray) -> np.ndarray:
    """W x of floats in two sums: even and odd columns, or of BF16 every other pair, its odd column first."""
    columns = np.ascontiguousarray(formats.unpack_reference(packed).T)
    sums = [np.zeros((len(x), packed.shape[0]), np.float32) for _ in range(2)]
    paired = packed.type == "BF16"
    for at in range(len(columns) + len(columns) % 2):
        column = at ^ 1 if paired else at
        if column < len(columns):
            which = at // 2 % 2 if paired else at % 2
            sums[which] = fma(columns[column], x[:, column, None], sums[which])
    return sums[0] + sums[1]
