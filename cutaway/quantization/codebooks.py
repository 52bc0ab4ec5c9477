"""Reading GGML's types whose numbers come out of grids, IQ1 to IQ3, and the ternary TQ1 and TQ2.

As in formats.py each takes uint8 [n bytes] and gives scale float32 [n p], no least, and q int8 [n block],
with value = scale q. A grid is a list of the groups of numbers that occur in real weights: a group is stored
by its place in the list, and its signs apart. The grids are in codebooks.bin, which
scripts/tables/codebooks.py writes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

Parts = tuple[np.ndarray, None, np.ndarray]
U16 = np.uint16
TWO, THIRDS = (8, 25, 43), (-1, 0, 1)  # what the codes of a grid stand for
GRIDS = {  # entries, numbers an entry, what a code stands for
    "IQ2_XXS": (256, 8, TWO),
    "IQ2_XS": (512, 8, TWO),
    "IQ2_S": (1024, 8, TWO),
    "IQ3_XXS": (256, 4, (4, 12, 20, 28, 36, 44, 52, 62)),
    "IQ3_S": (512, 4, (1, 3, 5, 7, 9, 11, 13, 15)),
    "IQ1_S": (2048, 8, THIRDS),
}


@cache
def grid(name: str) -> np.ndarray:
    """int8 [entries numbers]: the groups of a grid."""
    data, at = (Path(__file__).parent / "codebooks.bin").read_bytes(), 0
    for one, (entries, numbers, levels) in GRIDS.items():
        if one == name:
            words = np.frombuffer(data, "<u2", entries, at)
            bits = 16 // numbers
            codes = words[:, None] >> _shifts(16, bits, U16) & (1 << bits) - 1
            return np.array(levels, np.int8)[codes]
        at += 2 * entries
    raise KeyError(name)


def _shifts(end: int, step: int, kind: type) -> np.ndarray:
    """0, step, 2 step, ... below ``end``, in the type of what is shifted."""
    return np.arange(0, end, step, dtype=kind)


def half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The half at a byte of each block: float32 [n 1]."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _words(blocks: np.ndarray, first: int, last: int, kind: str) -> np.ndarray:
    return blocks[:, first:last].copy().view(kind)


def _signs(bits: np.ndarray) -> np.ndarray:
    """-1 for each bit that is set, 1 for the others, lowest first: int8 [n 8b] of uint8 [n b]."""
    return 1 - 2 * np.unpackbits(bits.reshape(len(bits), -1), axis=1, bitorder="little").view(np.int8)


def _even_signs(seven: np.ndarray) -> np.ndarray:
    """The signs of eight numbers of which seven are stored: the eighth makes minus signs even in number."""
    odd = np.unpackbits(seven.astype(np.uint8)[..., None], axis=-1).sum(-1, dtype=np.uint8) & 1
    return _signs(seven.astype(np.uint8) | odd << 7)


def _both(data: np.ndarray) -> np.ndarray:
    """The low and the high nibble of each byte, side by side: float32 [n 2b] of uint8 [n b]."""
    return np.stack([data & 15, data >> 4], axis=-1).reshape(len(data), -1).astype(np.float32)


def _tq1_0(blocks: np.ndarray) -> Parts:
    """48 bytes of 5 and 4 bytes of 4 ternary digits, as fractions of 256; half scale.

    A byte times 3^k leaves its first k digits behind; three times what is left has the next above 256.
    """
    groups = (blocks[:, :32], 5), (blocks[:, 32:48], 5), (blocks[:, 48:52], 4)
    q = [data * np.uint8(3**k) for data, digits in groups for k in range(digits)]
    digits = np.concatenate(q, axis=1).astype(U16) * 3 >> 8
    return half(blocks, 52), None, digits.astype(np.int8) - np.int8(1)


def _tq2_0(blocks: np.ndarray) -> Parts:
    """64 bytes of four 2-bit digits, 32 bytes for 128 numbers, the lowest bits first; half scale."""
    shifted = blocks[:, :64].reshape(-1, 2, 1, 32) >> _shifts(8, 2, np.uint8)[:, None]
    return half(blocks, 64), None, (shifted & 3).reshape(-1, 256).view(np.int8) - np.int8(1)


def _iq2_xxs(blocks: np.ndarray) -> Parts:
    """half d; for 32 numbers each 4 bytes, places in the grid, and a word: 4 x 7 sign bits, 4 of scale."""
    words = _words(blocks, 2, 66, "<u4").reshape(-1, 8, 2)
    places = words[..., 0].copy().view(np.uint8).reshape(-1, 32)
    signs = _even_signs((words[..., 1:] >> _shifts(28, 7, np.uint32) & 127).reshape(-1, 32))
    scale = half(blocks, 0) * (0.5 + (words[..., 1] >> 28).astype(np.float32)) * np.float32(0.25)
    return scale, None, grid("IQ2_XXS")[places].reshape(-1, 256) * signs


def _iq2_xs(blocks: np.ndarray) -> Parts:
    """half d; 32 words for 8 numbers each, 9 bits the place in the grid, 7 of signs; 16 scales, nibbles."""
    words = _words(blocks, 2, 66, "<u2")
    scale = half(blocks, 0) * (np.float32(0.5) + _both(blocks[:, 66:])) * np.float32(0.25)
    return scale, None, grid("IQ2_XS")[words & 511].reshape(-1, 256) * _even_signs(words >> 9)


def _iq2_s(blocks: np.ndarray) -> Parts:
    """half d; 32 low bytes of places; 32 bytes of signs; 8 bytes of four high pairs; 16 scales, nibbles."""
    high = (blocks[:, 66:74, None] >> _shifts(8, 2, np.uint8) & 3).reshape(-1, 32)
    places = blocks[:, 2:34].astype(U16) | high.astype(U16) << 8
    scale = half(blocks, 0) * (np.float32(0.5) + _both(blocks[:, 74:])) * np.float32(0.25)
    return scale, None, grid("IQ2_S")[places].reshape(-1, 256) * _signs(blocks[:, 34:66])


def _iq3_xxs(blocks: np.ndarray) -> Parts:
    """half d; 64 places in the grid, for 4 numbers each; 8 words of signs and scale as in IQ2_XXS."""
    words = _words(blocks, 66, 98, "<u4")
    signs = _even_signs((words[..., None] >> _shifts(28, 7, np.uint32) & 127).reshape(-1, 32))
    scale = half(blocks, 0) * (np.float32(0.5) + (words >> 28).astype(np.float32)) * np.float32(0.5)
    return scale, None, grid("IQ3_XXS")[blocks[:, 2:66]].reshape(-1, 256) * signs


def _iq3_s(blocks: np.ndarray) -> Parts:
    """half d; 64 low bytes of places; 64 high bits; 32 bytes of signs; 8 scales, nibbles."""
    high = np.unpackbits(blocks[:, 66:74], axis=1, bitorder="little").astype(U16)
    places = blocks[:, 2:66].astype(U16) | high << 8
    scale = half(blocks, 0) * (1 + 2 * _both(blocks[:, 106:]))
    return scale, None, grid("IQ3_S")[places].reshape(-1, 256) * _signs(blocks[:, 74:106])


def _iq1_s(blocks: np.ndarray) -> Parts:
    """half d; 32 low bytes of places; 8 words: four high triples, 3 bits of scale, a sign of the offset.

    A number is (g + o) of the grid's g and an offset o of an eighth up or down, which is the same for 32.
    """
    words = _words(blocks, 34, 50, "<u2")
    high = (words[..., None] >> _shifts(12, 3, U16) & 7).reshape(-1, 32)
    places = blocks[:, 2:34].astype(U16) | high << 8
    scale = half(blocks, 0) * (2 * (words >> 12 & 7) + 1).astype(np.float32)
    offset = np.where(words & 0x8000, -1, 1).astype(np.int8).repeat(32, axis=1)
    return scale / 8, None, grid("IQ1_S")[places].reshape(-1, 256) * np.int8(8) + offset


def _iq1_m(blocks: np.ndarray) -> Parts:
    """32 low bytes of places; 16 bytes, for 16 numbers two high triples, each below the sign of an offset; 4
    words: four scales of 3 bits, and 4 bits of the half d.
    """
    words, high = _words(blocks, 48, 56, "<u2"), _both(blocks[:, 32:48]).astype(U16)
    d = ((words & 0xF000) >> np.array([12, 8, 4, 0], U16)).sum(1, dtype=U16)[:, None]
    places = blocks[:, :32].astype(U16) | (high & 7) << 8
    s = (words[..., None] >> _shifts(12, 3, U16) & 7).reshape(-1, 16)
    scale = d.view("<f2").astype(np.float32) * (2 * s + 1).astype(np.float32)
    offset = np.where(high & 8, -1, 1).astype(np.int8).repeat(8, axis=1)
    return scale / 8, None, grid("IQ1_S")[places].reshape(-1, 256) * np.int8(8) + offset


PARTS: dict[str, Callable[[np.ndarray], Parts]] = {
    "IQ2_XXS": _iq2_xxs,
    "IQ2_XS": _iq2_xs,
    "IQ3_XXS": _iq3_xxs,
    "IQ1_S": _iq1_s,
    "IQ3_S": _iq3_s,
    "IQ2_S": _iq2_s,
    "IQ1_M": _iq1_m,
    "TQ1_0": _tq1_0,
    "TQ2_0": _tq2_0,
}
