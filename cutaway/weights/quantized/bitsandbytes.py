"""bitsandbytes: NF4 and FP4 (QLoRA, 2305.14314), and LLM.int8() (2208.07339).

Four bits: ``weight`` holds two indices of a table a byte, the high nibble first, over the matrix laid out
flat; ``absmax`` is a scale for each ``blocksize`` of them, itself quantised where there is a
``nested_absmax``: then nested_quant_map[absmax] nested_absmax + nested_offset. ``quant_state`` is JSON with
the shape, the sizes and the type that the library dequantises to; values are rounded to it as there.
Eight bits: ``SCB`` is the largest number of each row, and a value is q SCB / 127, as a product in float32.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from cutaway.errors import quoted
from cutaway.gguf import Packed
from cutaway.weights.fields import Fields
from cutaway.weights.quantized import stored as parts
from cutaway.weights.quantized.method import Method, keys, listed
from cutaway.weights.quantized.stored import KINDS, Stored

NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635]
NF4 += [-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725]
NF4 += [
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]
FP4 = [0, 0.0625, 8, 12, 4, 6, 2, 3]  # in units of a twelfth
TABLES = {"nf4": np.array(NF4, np.float32)}
TABLES["fp4"] = np.array([*FP4, *(-each for each in FP4)], np.float32) / np.float32(12)
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
STATE = ".weight.quant_state.bitsandbytes__"
INVERSE = np.float32(7.874015718698502e-3)  # of 127, as the library has it
MOST_JSON, MOST = 1 << 16, 1e30
HARMLESS = keys(
    """
    quant_method _load_in_4bit _load_in_8bit bnb_4bit_compute_dtype bnb_4bit_quant_storage
    bnb_4bit_use_double_quant llm_int8_threshold llm_int8_enable_fp32_cpu_offload
    llm_int8_has_fp16_weight
    """
)


def read(fields: Fields) -> Method:
    """The method of a config's section."""
    four = fields.flag("load_in_4bit", None) or fields.flag("_load_in_4bit", None)
    eight = fields.flag("load_in_8bit", None) or fields.flag("_load_in_8bit", None)
    if bool(four) == bool(eight):
        raise fields.refusal("load_in_4bit", "and load_in_8bit should be true in one of them")
    type = fields.choice("bnb_4bit_quant_type", {"nf4": "NF4", "fp4": "FP4"}, "fp4")
    ignored = listed(fields, "llm_int8_skip_modules")
    fields.finish(HARMLESS, "bitsandbytes has")
    state = tuple(STATE + name for name in TABLES)
    more = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
    return Method(
        f"bitsandbytes {type if four else 'int8'}",
        (".SCB", ".weight_format", *state, *(f".weight{part}" for part in more)),
        _weight,
        main=".weight",
        ending=".weight",
        bits=4 if four else 8,
        also="its scales quantized" if four and fields.get("bnb_4bit_use_double_quant") is True else "",
        ignored=ignored,
    )


def _weight(stored: Stored) -> Packed:
    return _eight(stored) if ".SCB" in stored else _four(stored)


def _eight(stored: Stored) -> Packed:
    q = stored.array(".weight", ("I8",), (None, None))
    shape = parts.checked(stored, q.shape)
    largest = stored.floats(".SCB", (shape[0],), (shape[0], 1)).reshape(-1, 1)
    if ".weight_format" in stored and stored.array(".weight_format", ("U8",), (), (1,)).reshape(-1)[0] != 0:
        raise stored.refusal("is in a layout of a processor: save it in rows, as bitsandbytes does")

    def values(first: int, last: int) -> np.ndarray:
        return q[first:last].astype(np.float32) * largest[first:last] * INVERSE

    return parts.floats("F32", shape, values, stored)


def _four(stored: Stored) -> Packed:
    kind = next((kind for kind in TABLES if STATE + kind in stored), "nf4")
    state = _state(stored, STATE + kind)
    shape, count = _shape(stored, state), 0
    count, columns = math.prod(shape), shape[1]
    block, dtype = state.get("blocksize"), state.get("dtype")
    if block not in BLOCKS or dtype not in list(DTYPES) or state.get("quant_type", kind) != kind:
        raise stored.refusal(
            f"has blocks of {quoted(block)} as {quoted(dtype)}, which bitsandbytes does not write"
        )
    codes = stored.array(".weight", tuple(KINDS))
    codes = codes.reshape(-1).view(np.uint8)
    if codes.size != -(-count // 2):
        raise stored.refusal(f"has {codes.size} bytes, where {count} numbers take {-(-count // 2)}")
    table = TABLES[kind]
    if not np.allclose(stored.floats(".weight.quant_map", (16,)), table, atol=1e-6):
        raise stored.refusal(f"has a quant_map that is not {kind}'s")
    blocks = -(-count // block)
    _scales(stored, state, blocks)  # which checks them

    def largest() -> tuple[np.ndarray, None]:
        return _scales(stored, state, blocks), None

    def values(first: int, last: int) -> np.ndarray:
        start, stop = first * columns, last * columns
        pairs = codes[start // 2 : -(-stop // 2)]
        q = np.stack([pairs >> 4, pairs & 15], axis=-1).reshape(-1)[start % 2 :][: stop - start]
        scales = parts.kept(largest)[0][start // block : -(-stop // block)]
        own = scales.repeat(block)[start % block :][: stop - start]
        return (table[q] * own).reshape(last - first, columns)

    return parts.floats(DTYPES[dtype], shape, values, stored)


def _state(stored: Stored, part: str) -> dict[str, Any]:
    data = stored.array(part, ("U8",), (None,))
    try:
        state = json.loads(data.tobytes()) if data.size <= MOST_JSON else None
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise stored.refusal("has a quant_state that is not JSON: get its file again")
    return state


def _shape(stored: Stored, state: dict[str, Any]) -> tuple[int, int]:
    shape = state.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int for n in shape):
        raise stored.refusal(f"has the shape {quoted(shape)}, which is not a matrix's")
    rows, columns = parts.checked(stored, tuple(shape))
    return rows, columns


def _scales(stored: Stored, state: dict[str, Any], count: int) -> np.ndarray:
    """The scale of each block in float32."""
    if ".weight.nested_absmax" not in stored:
        return stored.floats(".weight.absmax", (count,))
    codes = stored.array(".weight.absmax", ("U8",), (count,))
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    fits = isinstance(offset, (int, float)) and abs(offset) < MOST
    if type(block) is not int or block <= 0 or not fits or not isinstance(offset, (int, float)):
        raise stored.refusal("has no nested_blocksize and nested_offset in its quant_state")
    table = stored.floats(".weight.nested_quant_map", (256,))
    own = stored.floats(".weight.nested_absmax", (-(-count // block),))
    with np.errstate(all="ignore"):
        return table[codes] * own.repeat(block)[:count] + np.float32(offset)
