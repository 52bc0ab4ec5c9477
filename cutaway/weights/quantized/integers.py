"""Whole numbers in groups that share a scale, which most methods store: a value is (q - zero) scale.

The value is their product in float32, which is exact where scales have at most 16 bits. A matrix whose
scales are halves, one for 32 or more neighbours of a row, is kept packed: as Q4_0, Q5_0 or Q8_0, the first
that holds every q - zero. These hold each value to the bit, and the runtime has kernels for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cutaway.gguf import Packed
from cutaway.quantization import formats
from cutaway.weights.quantized import stored as parts
from cutaway.weights.quantized.stored import Scales, Stored

BLOCK = 32
RANGES = {"Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q8_0": (-128, 127)}


@dataclass(frozen=True)
class Grouped:
    """A matrix [rows columns] of whole numbers; ``q(first, last)`` are those of some rows, int16 [n columns].

    ``scales`` gives float32 and the zeros int16 (None: 0), both [rows or 1, groups]; ``order`` is the group
    of each column, None where groups are of neighbours, all of one size; ``low`` and ``high`` bound q.
    """

    shape: tuple[int, int]
    q: Callable[[int, int], np.ndarray]
    scales: Scales
    low: int
    high: int
    order: np.ndarray | None = None

    def packed(self, stored: Stored) -> Packed:
        """The weight in the first type that holds its values to the bit."""
        rows, columns = parts.checked(stored, self.shape)
        scale, zero = self.scales()
        groups = scale.shape[1]
        for what, each in (("scales", scale), ("zeros", zero)):
            if each is not None and (len(each) not in (1, rows) or each.shape[1] != groups):
                own = " x ".join(map(str, each.shape))
                raise stored.refusal(f"has {what} of {own}, where {rows} rows of {groups} groups are")
        if self.order is None and (groups == 0 or columns % groups):
            raise stored.refusal(f"has {groups} groups in rows of {columns}, which they do not share evenly")
        if self.order is not None and (
            self.order.shape != (columns,) or self.order.min() < 0 or self.order.max() >= groups
        ):
            raise stored.refusal(f"has a g_idx that does not name one of {groups} groups for each column")
        type = self._type(scale, zero, columns, columns // groups if self.order is None else 0)
        make = self._floats if type == "F32" else lambda first, last: self._blocks(type, first, last)
        return parts.made(type, (rows, columns), make, stored)

    def _type(self, scale: np.ndarray, zero: np.ndarray | None, columns: int, group: int) -> str:
        low, high = self.low, self.high
        if zero is not None:
            low, high = low - int(zero.max()), high - int(zero.min())
        with np.errstate(over="ignore", invalid="ignore"):
            halves = (scale.astype(np.float16).astype(np.float32) == scale).all()
        if group % BLOCK or columns % BLOCK or not group or not halves or not np.isfinite(scale).all():
            return "F32"
        return next((type for type, (a, b) in RANGES.items() if a <= low and high <= b), "F32")

    def _whole(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """q - zero int16 [n groups k] and scale [n groups 1] of some rows; ordered: of groups of one."""
        q = self.q(first, last).astype(np.int16, copy=False)
        scale, zero = parts.kept(self.scales)
        scale, zero = _of(scale, first, last), None if zero is None else _of(zero, first, last)
        if self.order is not None:
            scale, zero = scale[:, self.order], None if zero is None else zero[:, self.order]
        q = q.reshape(last - first, scale.shape[1], -1)
        return q if zero is None else q - zero[..., None], scale[..., None]

    def _floats(self, first: int, last: int) -> np.ndarray:
        with np.errstate(all="ignore"):  # a scale may be infinite or NaN: so is the value, and is named
            whole, scale = self._whole(first, last)
            values = whole.astype(np.float32) * scale
        return parts.stored_as(values.reshape(last - first, self.shape[1]), "F32")

    def _blocks(self, type: str, first: int, last: int) -> np.ndarray:
        whole, scale = self._whole(first, last)
        blocks = whole.reshape(-1, BLOCK)
        halves = np.repeat(scale.astype("<f2").reshape(-1), whole.shape[2] // BLOCK)[:, None].view(np.uint8)
        if type == "Q8_0":
            packed = [halves, blocks.astype(np.int8).view(np.uint8)]
        else:
            q = (blocks - RANGES[type][0]).astype(np.uint8)
            packed = [halves, formats.joined(q & 15)]
            if type == "Q5_0":
                packed.insert(1, np.packbits(q >> 4, axis=1, bitorder="little"))
        return np.concatenate(packed, axis=1).reshape(last - first, -1)


def order_of(
    stored: Stored, columns: int, groups: int, size: int | None, even: bool = True
) -> np.ndarray | None:
    """The group of each column by the stated size (-1: a row; None: none is), None where all are of one size.

    UserError where that many groups of it are not stored, and where ``even`` forbids a shorter last one.
    """
    if size is None:
        return None
    size = columns if size == -1 else size
    if columns and -(-columns // size) != groups:
        raise stored.refusal(
            f"has {groups} groups in rows of {columns}, where the config states groups of {size}, "
            f"{-(-columns // size)} of them: get the folder's own config.json"
        )
    if columns <= size or columns % size == 0:
        return None
    if even:
        raise stored.refusal(
            f"has rows of {columns}, which the stated groups of {size} do not share evenly: "
            "take a folder whose group size divides them"
        )
    return np.arange(columns) // size


def _of(each: np.ndarray, first: int, last: int) -> np.ndarray:
    """Some rows of scales or zeros, of which there may be one row for all."""
    if len(each) == 1:
        return np.broadcast_to(each, (last - first, each.shape[1]))
    return each[first:last]


def fields(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first ``count`` numbers of ``bits`` bits in the words of each row, the lowest bits first and across
    words: int16 [n count] of 32-bit words [n w].
    """
    words = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint32)
    if 32 % bits == 0:
        shifts = np.arange(0, 32, bits, dtype=np.uint32)
        q = words[..., None] >> shifts & np.uint32((1 << bits) - 1)
        return q.astype(np.int16).reshape(len(words), -1)[:, :count]
    at = np.arange(count, dtype=np.int64) * bits
    word, shift = at // 32, (at % 32).astype(np.uint64)
    pairs = words.astype(np.uint64)
    pairs = np.concatenate([pairs, np.zeros((len(words), 1), np.uint64)], axis=1)
    both = pairs[:, word] | pairs[:, word + 1] << np.uint64(32)
    return (both >> shift & np.uint64((1 << bits) - 1)).astype(np.int16)
