"""Floats of 4 bits (E2M1), two a byte, the low nibble first: NVFP4 and MXFP4.

NVFP4: 16 neighbours share a float of 8 bits, and a matrix one scale more, which multiplies them (NVIDIA's
ModelOpt) or divides them (compressed-tensors); the two in float32 are the scale of the value, a product in
float32. MXFP4: 32 neighbours share an exponent (2310.10537); it is GGUF's type of that name, kept packed.
"""

from __future__ import annotations

import numpy as np

from cutaway.gguf import Packed
from cutaway.quantization import formats
from cutaway.weights.quantized import fp8
from cutaway.weights.quantized import stored as parts
from cutaway.weights.quantized.stored import Stored

E2M1 = formats.TWICE_E2M1.astype(np.float32) / 2  # where zero has no sign, as in ModelOpt and GGUF
SIGNED = np.where(np.arange(16) == 8, np.float32(-0.0), E2M1)  # as in compressed-tensors


def weight(stored: Stored, main: str, scale: str, whole: str, divides: bool) -> Packed:
    """A weight whose bytes, scales and whole matrix's scale are these parts."""
    codes = stored.array(main, ("U8",), (None, None), (None, None, None))
    shape = parts.checked(stored, (*codes.shape[:-1], 2 * codes.shape[-1]))
    if stored.type(scale) == "U8" and whole not in stored:
        return _mxfp4(stored, codes, shape, scale)
    groups = shape[-1] // 16
    bytes = stored.array(scale, ("F8_E4M3",), (*shape[:-1], groups))
    if shape[-1] % 16:
        raise stored.refusal(f"has rows of {shape[-1]}, which are not in groups of 16")
    scales = stored.floats(whole)
    if scales.size not in (1, shape[0]):
        raise stored.refusal(f"has {scales.size} scales of its whole matrix, where one is needed")
    scales = scales.reshape(-1, *(1,) * (len(shape) - 1))

    def values(first: int, last: int) -> np.ndarray:
        own = scales if len(scales) == 1 else scales[first:last]
        narrow = fp8.TABLES["F8_E4M3"][bytes[first:last]]
        scale = (narrow / own if divides else narrow * own)[..., None]
        table = SIGNED if divides else E2M1
        return (_numbers(codes[first:last], table).reshape(*scale.shape[:-1], 16) * scale).reshape(
            last - first, *shape[1:]
        )

    return parts.floats("F32", shape, values, stored)


def _numbers(codes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Two floats of a byte: float32 [... 2b] of uint8 [... b]."""
    return table[np.stack([codes & 15, codes >> 4], axis=-1)].reshape(*codes.shape[:-1], -1)


def _mxfp4(stored: Stored, codes: np.ndarray, shape: tuple[int, ...], scale: str) -> Packed:
    powers = stored.array(scale, ("U8",), (*shape[:-1], shape[-1] // 32))
    if shape[-1] % 32:
        raise stored.refusal(f"has rows of {shape[-1]}, which are not in groups of 32")

    def make(first: int, last: int) -> np.ndarray:
        own = codes[first:last].reshape(*powers[first:last].shape, 16)
        return interleaved(own, powers[first:last])

    return parts.made("MXFP4", shape, make, stored)


def interleaved(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Blocks uint8 [... g 16] and exponents uint8 [... g] as GGUF's MXFP4: uint8 [... g * 17].

    GGUF has the exponent before its group, and the first 16 numbers in the low nibbles.
    """
    numbers = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 2, 16)
    packed = numbers[..., 0, :] | numbers[..., 1, :] << 4
    return np.concatenate([scales[..., None], packed], axis=-1).reshape(*scales.shape[:-1], -1)
