"""A packed matrix in memory when it runs: sixteen rows side by side, the same bytes in another
order.

A block (32 values, 256 for the K types) of sixteen rows is stored field after field, so that one register
holds the same place of sixteen rows and a product needs no sum across its lanes:

    halves [16]         scale, then least where the type has one
    bytes  [n 16]       six-bit or signed scales of the K types, byte by byte
    words  [n 16] of 4  quants, four bytes at a time

Fifth bits of Q5_0 and Q5_1 are transposed so that bit 8i + s belongs to value 4s + i. F32 and F16 are stored
as columns [columns 16], BF16 as pairs of columns. The reference implementation of native/runtime/panels.cpp,
byte for byte.
"""

from __future__ import annotations

import numpy as np

from cutaway.gguf import TYPES, Packed

PANEL = 16
# Fields of a block in the order in which a panel holds them: (first byte, how many pieces, bytes of a piece).
FIELDS = {
    "F32": ((0, 2, 4),),
    "F16": ((0, 2, 2),),
    "BF16": ((0, 1, 4),),
    "Q4_0": ((0, 1, 2), (2, 4, 4)),
    "Q4_1": ((0, 1, 2), (2, 1, 2), (4, 4, 4)),
    "Q5_0": ((0, 1, 2), (2, 1, 4), (6, 4, 4)),
    "Q5_1": ((0, 1, 2), (2, 1, 2), (4, 1, 4), (8, 4, 4)),
    "Q8_0": ((0, 1, 2), (2, 8, 4)),
    "Q4_K": ((0, 1, 2), (2, 1, 2), (4, 12, 1), (16, 32, 4)),
    "Q5_K": ((0, 1, 2), (2, 1, 2), (4, 12, 1), (16, 40, 4)),
    "Q6_K": ((208, 1, 2), (192, 16, 1), (0, 48, 4)),
}
FIFTHS = {"Q5_0": 2, "Q5_1": 4}  # where the word of fifth bits begins


def pack_reference(packed: Packed) -> np.ndarray:
    """The panels of a matrix, uint8; rows past the last, and an odd last column's partner, are zeros."""
    layout = TYPES[packed.type]
    size = layout.bytes * (2 if layout.block == 1 else 1)
    rows, row_bytes = packed.data.shape
    panels, blocks = -(-rows // PANEL), -(-row_bytes // size)
    data = np.zeros((panels * PANEL, blocks * size), np.uint8)
    data[:rows, :row_bytes] = packed.data
    data = data.reshape(panels, PANEL, blocks, size).transpose(0, 2, 1, 3)  # [panels blocks 16 bytes]
    if packed.type in FIFTHS:
        data = _fifths_transposed(data, FIFTHS[packed.type])
    parts = [
        data[..., first : first + count * width]
        .reshape(panels, blocks, PANEL, count, width)
        .swapaxes(2, 3)
        .reshape(panels, blocks, -1)
        for first, count, width in FIELDS[packed.type]
    ]
    return np.concatenate(parts, axis=-1).ravel()


def _fifths_transposed(data: np.ndarray, first: int) -> np.ndarray:
    bits = np.unpackbits(data[..., first : first + 4], axis=-1, bitorder="little")
    transposed = bits.reshape(*bits.shape[:-1], 8, 4).swapaxes(-1, -2).reshape(bits.shape)
    out = data.copy()
    out[..., first : first + 4] = np.packbits(transposed, axis=-1, bitorder="little")
    return out
