"""Packed weights to float32 and back: the GGML block formats, each defined by a few lines of numpy.

A type stores a row as blocks of values that share scales (ggml's ggml-quants.h and ggml-common.h). The
functions below are the reference: the compiled kernels of native/weights/quant.cpp give the same bits, many
times faster, and serve when they are there. All numbers in a block are little-endian; "half" is a 16-bit
float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np

from cutaway import native
from cutaway.errors import UserError
from cutaway.gguf import TYPES, Packed, packed_shape
from cutaway.quantization import codebooks
from cutaway.quantization.codebooks import half

U8 = np.uint8
Parts = tuple[np.ndarray, np.ndarray | None, np.ndarray]
WholeParts = tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray | None, np.ndarray]
HALF = 65504.0  # the largest number a half holds
# What nibbles mean: those of IQ4_NL and IQ4_XS, and those of MXFP4 (floats of 4 bits, E2M1), doubled.
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
TWICE_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def unpack(packed: Packed) -> np.ndarray:
    """The tensor as a new float32 array of its shape; refuses a type that is not one of weights."""
    _check(packed)
    if not native.available() or packed.type not in native.LAYOUTS:
        return unpack_reference(packed)
    out = np.empty(packed.shape, np.float32)
    native.unpack(packed.type, np.ascontiguousarray(packed.data), out)
    return out


def finite(name: str, packed: Packed) -> np.ndarray:
    """What `unpack` gives; UserError that names the weight if it holds an infinity or NaN."""
    values = unpack(packed)
    if not np.isfinite(values).all():
        raise UserError(f"The weight {name} holds an infinity or NaN: get its file again, or train it again")
    return values


def unpack_reference(packed: Packed) -> np.ndarray:
    """What `unpack` computes, by numpy alone: slower, and the judge of the compiled kernels."""
    with np.errstate(all="ignore"):  # a scale may be infinite or NaN: the result is too
        if packed.type in FLOATS:
            return FLOATS[packed.type](np.ascontiguousarray(packed.data)).reshape(packed.shape)
        scale, least, q = parts(packed)
        values = scale[..., None] * q.astype(np.float32)
        return (values if least is None else values + least[..., None]).reshape(packed.shape)


def parts(packed: Packed) -> Parts:
    """A quantised tensor of n rows as scale float32 [n p], least float32 [n p] or None, and q int8 [n p k].

    The k values of a part are scale q + least.
    """
    _check(packed)
    layout, columns = TYPES[packed.type], packed.shape[-1]
    scale, least, q = PARTS[packed.type](np.ascontiguousarray(packed.data).reshape(-1, layout.bytes))
    rows, per_block = math.prod(packed.shape[:-1]), scale.shape[1]
    shape = (rows, columns // layout.block * per_block)
    least = None if least is None else least.reshape(shape)
    return scale.reshape(shape), least, q.reshape(*shape, layout.block // per_block)


def whole_parts(packed: Packed) -> WholeParts:
    """A tensor of n rows of b blocks of 256 as halves d float32 [n b], dmin (or None), whole scales s int8
    [n b p], whole minima m uint8 (or None), and q int8 [n b p k]: a value is (d s) q - dmin m.
    """
    _check(packed)
    blocks = np.ascontiguousarray(packed.data).reshape(-1, TYPES[packed.type].bytes)
    d, dmin, s, m, q = WHOLE_PARTS[packed.type](blocks)
    shape = (math.prod(packed.shape[:-1]), packed.shape[-1] // 256)
    d, dmin = d.reshape(shape), None if dmin is None else dmin.reshape(shape)
    m = None if m is None else m.reshape(*shape, -1)
    return d, dmin, s.reshape(*shape, -1), m, q.reshape(*shape, s.shape[1], -1)


def steps(packed: Packed) -> np.ndarray:
    """float32 of the tensor's shape: at each value the distance to the next one that the type can hold."""
    if packed.type not in FLOATS:
        scale, _, q = parts(packed)
        return np.broadcast_to(np.abs(scale)[..., None], q.shape).reshape(packed.shape)
    values = np.abs(unpack(packed))
    if packed.type == "F16":
        return np.spacing(values.astype(np.float16)).astype(np.float32)
    return np.spacing(values) * np.float32(1 << 16 if packed.type == "BF16" else 1)


def pack(array: np.ndarray, type: str) -> Packed:
    """The float32 array packed as a type; refuses rows not of whole blocks and types it cannot write."""
    type = type_named(type, WRITERS, "weights are not written as")
    if array.dtype != np.float32:
        raise UserError(f"Only float32 arrays are packed, not {array.dtype}; convert it first.")
    block, row = TYPES[type].block, array.shape[-1] if array.shape else 1
    if row % block:
        raise UserError(
            f"Rows of {row} values cannot be packed as {type}, which takes blocks of {block}; "
            "keep this tensor in F16, BF16 or F32."
        )
    blocks = np.ascontiguousarray(array).reshape(-1, block)
    with np.errstate(all="ignore"):  # the writers divide by zero scales on purpose, and refuse what overflows
        packed = WRITERS[type](blocks)
    return Packed(type, array.shape, packed.reshape(packed_shape(type, array.shape)))


def type_named(name: str, allowed: Iterable[str], wrong: str = "there is no weight type") -> str:
    """The type that a name means, in any case; UserError, which begins with `wrong`, for any other."""
    types = {one.upper(): one for one in allowed}
    if name.upper() not in types:
        raise UserError(f"{wrong} {name!r}: use one of {', '.join(types.values())}")
    return types[name.upper()]


def _check(packed: Packed) -> None:
    if packed.type not in READERS:
        raise UserError(f"The type {packed.type} is not one of weights: {', '.join(READERS)}")


# Reading floats. Each takes uint8 and gives float32, one number each.


def read_f32(blocks: np.ndarray) -> np.ndarray:
    """One float."""
    return blocks.view("<f4").copy()


def read_f16(blocks: np.ndarray) -> np.ndarray:
    """One half."""
    return blocks.view("<f2").astype(np.float32)


def read_bf16(blocks: np.ndarray) -> np.ndarray:
    """The upper half of a float."""
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


# Reading quantised types. Each takes uint8 [n bytes] and gives, for p parts of a block that share a scale,
# scale float32 [n p], least float32 [n p] (None where the type has none) and q int8 [n block]:
#     value = scale q + least


def _q4_0(blocks: np.ndarray) -> Parts:
    """half scale; 16 bytes, the low nibbles values 0-15 and the high ones 16-31.  value = scale (q - 8)"""
    return half(blocks, 0), None, _nibbles(blocks[:, 2:]) - 8


def _q4_1(blocks: np.ndarray) -> Parts:
    """half scale; half least; 16 bytes as in Q4_0.  value = scale q + least"""
    return half(blocks, 0), half(blocks, 2), _nibbles(blocks[:, 4:])


def _q5_0(blocks: np.ndarray) -> Parts:
    """half scale; 32 fifth bits; 16 bytes as in Q4_0.  value = scale (q - 16)"""
    return half(blocks, 0), None, (_nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])) - 16


def _q5_1(blocks: np.ndarray) -> Parts:
    """half scale; half least; 32 fifth bits; 16 bytes as in Q4_0.  value = scale q + least"""
    return half(blocks, 0), half(blocks, 2), _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])


def _q8_0(blocks: np.ndarray) -> Parts:
    """half scale; 32 signed bytes.  value = scale q"""
    return half(blocks, 0), None, blocks[:, 2:].view(np.int8)


def _iq4_nl(blocks: np.ndarray) -> Parts:
    """half scale; 16 bytes as in Q4_0, each nibble an index.  value = scale LEVELS[q]"""
    return half(blocks, 0), None, LEVELS[_nibbles(blocks[:, 2:])]


def _mxfp4(blocks: np.ndarray) -> Parts:
    """A byte e; 16 bytes as in Q4_0, each nibble a float of 4 bits.  value = 2^(e - 128) (twice the float)

    The microscaling format of the Open Compute Project (2310.10537), whose e = 255 is NaN; here, as in ggml,
    2^127.
    """
    e = blocks[:, :1].astype(np.uint32)
    scale = np.where(e < 2, 0x00200000 << np.minimum(e, 1), (e - 1) << 23).astype(np.uint32).view(np.float32)
    return scale, None, TWICE_E2M1[_nibbles(blocks[:, 1:])]


def _nvfp4(blocks: np.ndarray) -> Parts:
    """4 bytes, one for 16 values, floats of 8 bits without a sign (E4M3); 4 x 8 bytes of 16 floats of 4 bits,
    the low nibbles first.  value = scale / 2 (twice the float)

    The scale whose bits are all set (but the highest) is 0, as in ggml.
    """
    e, m = (blocks[:, :4] >> 3 & 15).astype(np.int32), (blocks[:, :4] & 7).astype(np.float32)
    scale = np.ldexp(np.where(e == 0, m, m + 8), np.maximum(e, 1) - 11).astype(np.float32)
    scale[blocks[:, :4] == 0x7F] = 0
    return scale, None, TWICE_E2M1[_nibbles(blocks[:, 4:].reshape(-1, 8))].reshape(-1, 64)


def _q1_0(blocks: np.ndarray) -> Parts:
    """half scale; 128 bits, the lowest first.  value = scale where a bit is set, else -scale"""
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little").view(np.int8)
    return half(blocks, 0), None, 2 * bits - np.int8(1)


# Reading the types whose blocks are 256 values. Each takes uint8 [n bytes] and gives, for p parts of a block,
# halves d and dmin float32 [n 1], whole scales s int8 and minima m uint8 [n p], and q int8 [n 256]; dmin and
# m are None where the type has none:
#     value = (d s) q - dmin m


def _q2_k(blocks: np.ndarray) -> WholeParts:
    """16 bytes (scale, least as nibbles, one for 16 values); 64 bytes of 2-bit q; half scale; half least."""
    q = _pairs_of_bits(blocks[:, 16:80]).view(np.int8)
    s, m = (blocks[:, :16] & 15).view(np.int8), blocks[:, :16] >> 4
    return half(blocks, 80), half(blocks, 82), s, m, q


def _q3_k(blocks: np.ndarray) -> WholeParts:
    """32 bytes of third bits; 64 bytes of 2-bit q; 12 bytes of 6-bit scales, one for 16 values; half scale.

    s is 32 less than its six bits, q 4 less, but where the third bit is set. Scale i keeps its low nibble in
    byte i mod 8 and its high two bits in byte 8 + i mod 4.
    """
    scales = blocks[:, 96:108]
    low = np.concatenate([scales[:, :8] & 15, scales[:, :8] >> 4], axis=1)
    high = np.concatenate([(scales[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    third = np.concatenate([(blocks[:, :32] >> bit) & 1 for bit in range(8)], axis=1).astype(np.int8)
    q = _pairs_of_bits(blocks[:, 32:96]).view(np.int8) - 4 + 4 * third
    return half(blocks, 108), None, (low | high << 4).view(np.int8) - np.int8(32), None, q


def _q4_k(blocks: np.ndarray) -> WholeParts:
    """half scale; half least; 12 bytes of scales (`six_bits`), one for 32 values; 4 x 32 bytes of nibbles: 32
    low ones, then 32 high ones.
    """
    q = _nibbles(blocks[:, 16:].reshape(-1, 32)).reshape(-1, 256)
    return *_scales_of_32(blocks), q


def _q5_k(blocks: np.ndarray) -> WholeParts:
    """half scale; half least; 12 bytes of scales; 32 bytes of fifth bits; nibbles as in Q4_K.

    Bit i of the fifth bits' byte j belongs to value 32 i + j.
    """
    fifth = np.concatenate([((blocks[:, 16:48] >> bit) & 1) << 4 for bit in range(8)], axis=1)
    nibbles = _nibbles(blocks[:, 48:].reshape(-1, 32)).reshape(-1, 256)
    return *_scales_of_32(blocks), nibbles | fifth.view(np.int8)


def _q6_k(blocks: np.ndarray) -> WholeParts:
    """128 bytes of low nibbles; 64 bytes of high bit pairs; 16 signed scales, one for 16 values; half scale.

    q is 32 less than its bits. 64 bytes hold the low nibbles of 64 values, then, above, those of the next 64.
    """
    low = _nibbles(blocks[:, :128].reshape(-1, 64)).reshape(-1, 256)
    q = (low | _pairs_of_bits(blocks[:, 128:192]).view(np.int8) << 4) - 32
    return half(blocks, 208), None, blocks[:, 192:208].view(np.int8), None, q


def _iq4_xs(blocks: np.ndarray) -> WholeParts:
    """half scale; 2 bytes, 4 bytes of 6-bit scales, one for 32 values; 8 x 16 bytes as in IQ4_NL.

    s is 32 less than its bits. The upper two of scale i are bits 2i of the two bytes, the lower four are
    nibble i of the four bytes.
    """
    low = (blocks[:, 4:8, None] >> np.array([0, 4], U8) & 15).reshape(-1, 8)
    high = (blocks[:, 2:4, None] >> np.array([0, 2, 4, 6], U8) & 3).reshape(-1, 8)
    q = LEVELS[_nibbles(blocks[:, 8:].reshape(-1, 16))].reshape(-1, 256)
    return half(blocks, 0), None, (low | high << 4).view(np.int8) - np.int8(32), None, q


def _nibbles(data: np.ndarray) -> np.ndarray:
    """The low nibbles of each row, then the high ones: int8 [n 2b] of uint8 [n b]."""
    return np.concatenate([data & 15, data >> 4], axis=1).view(np.int8)


def _fifth_bits(data: np.ndarray) -> np.ndarray:
    """Bit i of 32, at bit 4 of value i: int8 [n 32] of uint8 [n 4]."""
    return (np.unpackbits(data, axis=1, bitorder="little") << 4).view(np.int8)


def _pairs_of_bits(data: np.ndarray) -> np.ndarray:
    """Each 32 bytes hold 128 values of two bits, the lowest bits first: uint8 [n 4b] of uint8 [n b]."""
    chunks = data.reshape(len(data), -1, 1, 32) >> np.array([0, 2, 4, 6], U8)[:, None]
    return (chunks & 3).reshape(len(data), -1)


def six_bits(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and eight minima of six bits in 12 bytes: uint8 [n 8] twice of uint8 [n 12].

    Bytes 0-3 hold scales 0-3, bytes 4-7 minima 0-3, bytes 8-11 the low nibbles of scales (low) and minima
    (high) 4-7, whose upper two bits are those of bytes 0-3 and 4-7.
    """
    scale, least, rest = data[:, :4], data[:, 4:8], data[:, 8:]
    scales = np.concatenate([scale & 63, rest & 15 | scale >> 2 & 48], axis=1)
    return scales, np.concatenate([least & 63, rest >> 4 | least >> 2 & 48], axis=1)


def _scales_of_32(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """d, dmin, s and m of Q4_K and Q5_K."""
    scales, minima = six_bits(blocks[:, 4:16])
    return half(blocks, 0), half(blocks, 2), scales.view(np.int8), minima


def _of_whole(type: str) -> Callable[[np.ndarray], Parts]:
    """The reader of a type with blocks of 256 as the others': scale d s, least -(dmin m), each rounded."""

    def read(blocks: np.ndarray) -> Parts:
        d, dmin, s, m, q = WHOLE_PARTS[type](blocks)
        least = None if dmin is None or m is None else -(dmin * m.astype(np.float32))
        return d * s.astype(np.float32), least, q

    return read


WHOLE_PARTS: dict[str, Callable[[np.ndarray], WholeParts]] = {
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_XS": _iq4_xs,
}
PARTS: dict[str, Callable[[np.ndarray], Parts]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "IQ4_NL": _iq4_nl,
    "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
    "Q1_0": _q1_0,
    **{type: _of_whole(type) for type in WHOLE_PARTS},
    **codebooks.PARTS,
}
FLOATS = {"F32": read_f32, "F16": read_f16, "BF16": read_bf16}
READERS = (*FLOATS, *PARTS)


# Writing. Each takes float32 [n block] and gives uint8 [n bytes], as ggml's reference quantizer does.


def write_f32(blocks: np.ndarray) -> np.ndarray:
    """The float itself."""
    return blocks.astype("<f4").view(U8)


def write_f16(blocks: np.ndarray) -> np.ndarray:
    """The nearest half; what is finite and beyond its range is refused."""
    halves = blocks.astype("<f2")
    if (np.isinf(halves) & np.isfinite(blocks)).any():
        raise UserError("A weight is beyond the range of F16 (65504); write this tensor as BF16 or F32.")
    return halves.view(U8)


def write_bf16(blocks: np.ndarray) -> np.ndarray:
    """The upper 16 bits, rounded to nearest even; a NaN stays one, made quiet."""
    bits = blocks.view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(is_nan, bits >> 16 | 0x40, rounded).astype("<u2").view(U8)


def write_q8_0(blocks: np.ndarray) -> np.ndarray:
    """scale = max |x| / 127; q = x / scale, halves away from zero."""
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    return np.concatenate([_half_bytes(scale), _round(blocks * _inverse(scale)).view(U8)], axis=1)


def write_q4_0(blocks: np.ndarray) -> np.ndarray:
    """scale = x / -8 for the x of largest size; q = x / scale + 8, rounded, at most 15."""
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scale = largest / np.float32(-8)
    q = _to_nibble(blocks * _inverse(scale) + np.float32(8.5))
    return np.concatenate([_half_bytes(scale), joined(q)], axis=1)


def write_q4_1(blocks: np.ndarray) -> np.ndarray:
    """scale = (max - min) / 15, least = min; q = (x - least) / scale, rounded."""
    least = blocks.min(axis=1, keepdims=True)
    scale = (blocks.max(axis=1, keepdims=True) - least) / np.float32(15)
    q = _to_nibble((blocks - least) * _inverse(scale) + np.float32(0.5))
    return np.concatenate([_half_bytes(scale), _half_bytes(least), joined(q)], axis=1)


def _inverse(scale: np.ndarray) -> np.ndarray:
    return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


def _half_bytes(column: np.ndarray) -> np.ndarray:
    """Scales as they are stored; refused where a weight is not finite or too large for a half to scale it."""
    halves = column.astype("<f2")
    if not np.isfinite(halves).all():
        raise UserError("A weight is infinite, NaN or too large to scale; write this tensor as BF16 or F32")
    return halves.view(U8)


def _round(values: np.ndarray) -> np.ndarray:
    """Round to the nearest integer, halves away from zero: int8."""
    size = np.abs(values)
    whole = np.floor(size)
    return (np.sign(values) * (whole + np.floor(2 * (size - whole)))).astype(np.int8)


def _to_nibble(values: np.ndarray) -> np.ndarray:
    return np.trunc(values).astype(U8).clip(0, 15)


def joined(q: np.ndarray) -> np.ndarray:
    """Values 0-15 in the low nibbles, 16-31 in the high ones: uint8 [n 16] of uint8 [n 32]."""
    return q[:, :16] | q[:, 16:] << 4


WRITERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "F32": write_f32,
    "F16": write_f16,
    "BF16": write_bf16,
    "Q8_0": write_q8_0,
    "Q4_0": write_q4_0,
    "Q4_1": write_q4_1,
}
