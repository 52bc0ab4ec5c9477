"""A packed matrix in memory when it runs: sixteen rows side by side, the same bytes in another
order.

A block (32 values, 256 for the K types) of sixteen rows is stored field after field, so that one register
holds the same place of sixteen rows and a product needs no sum across its lanes:

    halves [16]         scale, then least where the type has one
    bytes  [n 16]       six-bit or signed scales of the K types, byte by byte
    words  [n 16] of 4  quants, four bytes at a time

Fifth bits of Q5_0 and Q5_1 are transposed so that bit 8i + s belongs to value 4s + i. A K type's block is
first brought, row by row, into the order in which a product reads it (`LINEAR`). F32 and F16 are stored
as columns [columns 16], BF16 as pairs of columns. The reference implementation of native/runtime/panels.cpp,
byte for byte.
"""

from __future__ import annotations

import numpy as np

from cutaway.gguf import TYPES, Packed
from cutaway.quantization import formats

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
    "Q2_K": (
        (0, 1, 2),
        (2, 1, 2),
        *((4 + 20 * n + at, *of) for n in range(4) for at, of in ((0, (4, 1)), (4, (4, 4)))),
    ),
    "Q3_K": ((0, 1, 2), *((2 + 27 * n + at, *of) for n in range(4) for at, of in ((0, (3, 1)), (3, (6, 4))))),
    "Q4_K": (
        (0, 1, 2),
        (2, 1, 2),
        *((4 + 35 * n + at, *of) for n in range(4) for at, of in ((0, (3, 1)), (3, (8, 4)))),
    ),
    "Q5_K": (
        (0, 1, 2),
        (2, 1, 2),
        *((4 + 43 * n + at, *of) for n in range(4) for at, of in ((0, (3, 1)), (3, (10, 4)))),
    ),
    "Q6_K": ((0, 1, 2), (2, 16, 1), (18, 48, 4)),
    "IQ4_NL": ((0, 1, 2), (2, 4, 4)),
    "IQ4_XS": ((0, 1, 2), (2, 6, 1), (8, 32, 4)),
    "MXFP4": ((0, 1, 1), (1, 4, 4)),
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
    if packed.type in LINEAR:
        data = LINEAR[packed.type](data.reshape(-1, size)).reshape(data.shape)
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


# A K type's blocks uint8 [n bytes] in the order in which a product reads them.


def _q2_k(blocks: np.ndarray) -> np.ndarray:
    """The halves; of each pair of groups four bytes of scales and minima, four words of sixteen values."""
    quants = _two_bit_words(formats.WHOLE_PARTS["Q2_K"](blocks)[-1]).reshape(-1, 4, 16)
    pairs = np.concatenate([blocks[:, :16].reshape(-1, 4, 4), quants], axis=2)
    return np.concatenate([blocks[:, 80:], pairs.reshape(len(blocks), -1)], axis=1)


def _q3_k(blocks: np.ndarray) -> np.ndarray:
    """The half; of each pair of groups three bytes of scales, and of each group two words of lower bits (of
    sixteen values each) and one of third bits: bit 8i + s belongs to value 4s + i.
    """
    _, _, s, _, q = formats.WHOLE_PARTS["Q3_K"](blocks)
    scales, raised = (s + 32).view(np.uint8).reshape(-1, 4, 4), (q + 4).view(np.uint8)
    low, upper = scales & 15, scales >> 4
    upper = upper[..., 0] | upper[..., 1] << 2 | upper[..., 2] << 4 | upper[..., 3] << 6
    scales = np.concatenate([low[..., ::2] | low[..., 1::2] << 4, upper[..., None]], axis=2)
    bits = (raised >> 2).reshape(-1, 8, 8, 4).swapaxes(2, 3)  # [n group i s]
    third = np.packbits(bits, axis=-1, bitorder="little").reshape(-1, 8, 4)
    words = np.concatenate([_two_bit_words(raised & 3).reshape(-1, 8, 8), third], axis=2).reshape(-1, 4, 24)
    pairs = np.concatenate([scales, words], axis=2)
    return np.concatenate([blocks[:, 108:], pairs.reshape(len(blocks), -1)], axis=1)


def _two_bit_words(q: np.ndarray) -> np.ndarray:
    """uint8 [n 64] of 256 values of two bits: of each sixteen a word, values 4j.. at bits 2j of its bytes."""
    fours = q.view(np.uint8).reshape(len(q), 16, 4, 4)  # [n part j byte]
    words = fours[:, :, 0] | fours[:, :, 1] << 2 | fours[:, :, 2] << 4 | fours[:, :, 3] << 6
    return words.reshape(len(q), 64)


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    """The halves; of each pair of groups three bytes of scales and minima, and 32 of nibbles."""
    scales = _pair_scales(blocks[:, 4:16])
    pairs = np.concatenate([scales, blocks[:, 16:].reshape(-1, 4, 32)], axis=2)
    return np.concatenate([blocks[:, :4], pairs.reshape(len(blocks), -1)], axis=1)


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    """As Q4_K, the fifth bits of a pair's groups before its nibbles: bit 8i + s belongs to value 4s + i."""
    bits = blocks[:, 16:48, None] >> np.arange(8, dtype=np.uint8) & 1  # [n value group]
    bits = bits.reshape(-1, 8, 4, 8).transpose(0, 3, 2, 1)  # [n group i s]
    fifths = np.packbits(bits, axis=-1, bitorder="little").reshape(-1, 4, 8)
    nibbles = blocks[:, 48:].reshape(-1, 4, 32)
    pairs = np.concatenate([_pair_scales(blocks[:, 4:16]), fifths, nibbles], axis=2)
    return np.concatenate([blocks[:, :4], pairs.reshape(len(blocks), -1)], axis=1)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    """The half, the scales; of each sixteen values v two words of nibbles (v and v + 4, v + 8 and v + 12) and
    one of the upper bit pairs of all four.
    """
    q = formats.WHOLE_PARTS["Q6_K"](blocks)[-1]
    raised = (q + 32).view(np.uint8).reshape(-1, 16, 4, 4)  # [n part word byte]
    low, upper = raised & 15, raised >> 4
    nibbles = low[:, :, ::2] | low[:, :, 1::2] << 4
    pairs = upper[:, :, 0] | upper[:, :, 1] << 2 | upper[:, :, 2] << 4 | upper[:, :, 3] << 6
    quants = np.concatenate([nibbles.reshape(-1, 16, 8), pairs], axis=2).reshape(len(blocks), -1)
    return np.concatenate([blocks[:, 208:], blocks[:, 192:208], quants], axis=1)


def _pair_scales(data: np.ndarray) -> np.ndarray:
    """uint8 [n 4 3] of a pair of groups: the even one's scale, the odd one's, the even one's minimum, and
    above them the odd one's minimum by two bits each.
    """
    scale, least = (each.reshape(-1, 4, 2) for each in formats.six_bits(data))
    odd = least[..., 1]
    even = np.stack([scale[..., 0], scale[..., 1], least[..., 0]], axis=-1)
    return even | np.stack([odd << 6, odd >> 2 << 6, odd >> 4 << 6], axis=-1)


LINEAR = {"Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}
