"""Floats of 8 bits with scales: DeepSeek's and Qwen's blocks of 128 by 128, rows, whole matrices, MXFP8.

A weight of type F8_E4M3 (or F8_E5M2) has beside it ``NAME_scale_inv`` or ``NAME_scale``, which both multiply:
one number, one for each row, or one for each block, the last of a row or column cut off where it ends. MXFP8
has bytes there, powers of two for 32 neighbours each. A value is their product in float32.
"""

from __future__ import annotations

import numpy as np

from cutaway.errors import quoted
from cutaway.gguf import Packed
from cutaway.weights.fields import Fields
from cutaway.weights.quantized import stored as parts
from cutaway.weights.quantized.method import Method, keys, listed
from cutaway.weights.quantized.stored import Stored

EIGHT = ("F8_E4M3", "F8_E5M2")
SCALES = ("_scale_inv", "_scale")
BLOCK = (128, 128)  # where a config states none, as in transformers
HARMLESS = keys(
    """
    quant_method activation_scale_ub kv_cache_scheme kv_cache_quant_method weight_dequantize
    use_deep_gemm
    """
)


def _table(exponents: int, mantissa: int) -> np.ndarray:
    """What each byte means: a sign, ``exponents`` bits of exponent and ``mantissa`` bits below."""
    byte = np.arange(256)
    e, m = byte >> mantissa & (1 << exponents) - 1, byte & (1 << mantissa) - 1
    whole = np.where(e == 0, m, m + (1 << mantissa)).astype(np.float32)
    values = np.ldexp(whole, np.maximum(e, 1) - (1 << exponents - 1) + 1 - mantissa).astype(np.float32)
    return np.where(byte >= 128, -values, values).astype(np.float32)


TABLES = {"F8_E4M3": _table(4, 3), "F8_E5M2": _table(5, 2)}
TABLES["F8_E4M3"][[0x7F, 0xFF]] = np.nan  # which has no infinities
TABLES["F8_E5M2"][[0x7C, 0xFC]] = np.inf, -np.inf
TABLES["F8_E5M2"][[*range(0x7D, 0x80), *range(0xFD, 0x100)]] = np.nan
POWERS = np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.nan).astype(np.float32)  # E8M0


def read(fields: Fields) -> Method:
    """The method of a config's section."""
    method = fields.text("quant_method")
    fields.only("activation_scheme", ("dynamic", "static", None), "another scheme of activations")
    fields.only("fmt", ("e4m3", "float8_e4m3fn", None), "another format of 8 bits")
    fields.only("scale_fmt", ("float", "ue8m0", None), "another format of scales")
    fields.only("expert_dtype", ("fp8", None), "experts in another format")
    fields.only("dequantize", (False, None, True), "another value")
    block = block_of(fields, "weight_block_size")
    if method == "mxfp8" and block is None:
        block = (1, 32)
    fields.get("modules_to_convert")
    ignored = listed(fields, "modules_to_not_convert", "ignored_layers")
    fields.finish(HARMLESS, "FP8 has")
    return of(block, ignored, "MXFP8" if method == "mxfp8" else "FP8")


def of(block: tuple[int, int] | None, ignored: tuple[str, ...], name: str = "FP8") -> Method:
    """The method with blocks of these sizes, or with scales of rows or matrices."""
    return Method(
        name,
        SCALES,
        lambda stored: weight(stored, block),
        takes=lambda name, found: any(each.type in EIGHT for each in found.values()),
        bits=8,
        also="" if block is None else f"blocks of {block[0]} x {block[1]}",
        ignored=ignored,
    )


def block_of(fields: Fields, key: str) -> tuple[int, int] | None:
    """The rows and columns of a block."""
    value = fields.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and n > 0 for n in value):
        raise fields.refusal(key, f"should be the rows and columns of a block, but is {quoted(value)}")
    return value[0], value[1]


def weight(stored: Stored, block: tuple[int, int] | None, main: str = "") -> Packed:
    """A weight of two axes, or of experts and two."""
    codes = stored.array(main, EIGHT, (None, None), (None, None, None))
    table, shape = TABLES[stored.type(main)], parts.checked(stored, codes.shape)
    part = next((part for part in SCALES if part in stored), SCALES[0])
    scale, powers = scales_of(stored, part)
    index, scale = _places(stored, shape, scale, block)
    short = stored.type(main) == "F8_E4M3" and powers
    at = np.arange(shape[0])

    def values(first: int, last: int) -> np.ndarray:
        own = scale if index[0] is None else scale[at[first:last] // index[0]]
        for axis, size in enumerate(index[1:], 1):
            if size is not None:
                own = np.take(own, np.arange(shape[axis]) // size, axis)
        return table[codes[first:last]] * own

    return parts.floats("BF16" if short else "F32", shape, values, stored)


def scales_of(stored: Stored, part: str) -> tuple[np.ndarray, bool]:
    """The scales in float32, and whether a float of E4M3 times each is exact in bfloat16."""
    if stored.type(part) in ("U8", "F8_E8M0"):
        scale = POWERS[stored.array(part, ("U8", "F8_E8M0"))]
    else:
        scale = stored.floats(part)
    mantissas = np.ascontiguousarray(scale).view(np.uint32) & 0x7FFFFF
    near = (np.abs(scale) < 1e30) & (np.abs(scale) > 1e-30)
    return scale, bool((mantissas == 0).all() and near.all())


def _places(
    stored: Stored, shape: tuple[int, ...], scale: np.ndarray, block: tuple[int, int] | None
) -> tuple[list[int | None], np.ndarray]:
    """For each axis how many numbers share a scale (None: all), and the scales with as many axes."""
    if scale.size == 1:
        scale = scale.reshape((1,) * len(shape))
    elif scale.ndim == len(shape) - 1 and scale.shape == shape[:-1]:
        scale = scale[..., None]
    sizes: list[int | None] = []
    wanted = (1, *(block or BLOCK))[-len(shape) :]
    if scale.ndim == len(shape):
        for n, own, size in zip(shape, scale.shape, wanted, strict=True):
            if -(-n // size) == own:
                sizes.append(size)
            elif block is not None:
                break
            elif own == 1:
                sizes.append(None)
            elif own and n % own == 0:
                sizes.append(n // own)
    if len(sizes) != len(shape):
        spelt, own, stated = (" x ".join(map(str, each)) for each in (scale.shape, shape, block or ()))
        says = f": the config states blocks of {stated}" if block else ""
        raise stored.refusal(f"is {own} and has scales of {spelt or 'one number'}, which do not fit it{says}")
    return sizes, scale
