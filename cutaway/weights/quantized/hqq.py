"""HQQ (Half-Quadratic Quantization), as its library's layers save themselves in safetensors.

``W_q`` holds numbers of 1, 2, 4 or 8 bits in bytes, or ten of 3 bits in an int32, of the matrix laid out as
[group_size, -1] (axis 0) or [-1, group_size] (axis 1); the rows of that are packed in 8 / bits parts, the
first part in the highest bits. A value is (q - zero) scale, in the type ``compute_dtype`` that is recorded,
each of the two steps rounded to it as the library does.
"""

from __future__ import annotations

import numpy as np

from cutaway.errors import quoted
from cutaway.gguf import Packed
from cutaway.weights.fields import Fields
from cutaway.weights.quantized import stored as parts
from cutaway.weights.quantized.method import Method, keys, listed
from cutaway.weights.quantized.stored import FLOATS, WHOLE, Stored

PACKING = {"8bit_u8": 8, "4bit_u8": 4, "3bit_32": 3, "2bit_u8": 2, "1bit_u8": 1}
DTYPES = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}
PARTS = tuple(
    f".{name}"
    for name in keys(
        """
        scale zero nbits group_size shape axis packing unpack_view_dtype view_as_float quant_scale quant_zero
        compute_dtype offload_meta encoded_state_dict stores_quant_config channel_wise optimize round_zero
        """
    )
)


def read(fields: Fields) -> Method:
    """The method of a config's section."""
    ignored = listed(fields, "skip_modules")
    quant = fields.section("quant_config")
    own = quant.section("weight_quant_params") if quant else None
    bits = own.integer("nbits", None, high=8) if own else None
    group = own.integer("group_size", None) if own else None
    fields.finish(("quant_method",), "HQQ has")
    return Method(
        "HQQ", PARTS, _weight, main=".W_q", ending=".weight", bits=bits, group=group, ignored=ignored
    )


def _weight(stored: Stored) -> Packed:
    rows, columns = _shape(stored)
    bits = PACKING.get(_text(stored, ".packing"), 0)
    if not bits:
        raise stored.refusal(
            f"is packed as {quoted(_text(stored, '.packing'))}: use one of {', '.join(PACKING)}"
        )
    dtype = DTYPES.get(_text(stored, ".compute_dtype"), "")
    if not dtype:
        raise stored.refusal(
            f"is of {quoted(_text(stored, '.compute_dtype'))}: use one of {', '.join(DTYPES)}"
        )
    for flag in (".quant_scale", ".quant_zero", ".view_as_float"):
        if flag in stored and _number(stored, flag):
            raise stored.refusal(f"has {flag[1:]}, which is not read: quantize it again without")
    axis = _number(stored, ".axis")
    words = stored.array(".W_q", ("U8", "I32"), (None, None))
    each = 10 if bits == 3 else 8 // bits
    if axis not in (0, 1) or (stored.type(".W_q") == "I32") != (bits == 3):
        raise stored.refusal(f"has axis {axis} and numbers of {bits} bits in {stored.type('.W_q')}")
    group = _number(stored, ".group_size") if ".group_size" in stored else 0
    count, across = rows * columns, words.shape[1]
    if not across or count % across or count // across > each * len(words):
        raise stored.refusal(f"is {rows} x {columns}, and its numbers are {each * len(words)} x {across}")
    high = count // across
    groups = across if axis == 0 else high
    if group and groups * group != count:
        raise stored.refusal(f"has {groups} groups, where groups of {group} make {count // group}")
    spread = (1, groups) if axis == 0 else (groups, 1)
    for part in (".scale", ".zero"):
        stored.array(part, FLOATS, spread)

    def both() -> tuple[np.ndarray, np.ndarray]:
        scale, zero = (parts.rounded(stored.floats(part), dtype) for part in (".scale", ".zero"))
        return scale, zero

    def values(first: int, last: int) -> np.ndarray:
        start, stop = first * columns, last * columns
        lines = np.arange(start // across, -(-stop // across))  # of the matrix as it is laid out
        shift = bits * (each - 1 - lines // len(words))
        q = (words[lines % len(words)] >> shift[:, None].astype(words.dtype)) & (1 << bits) - 1
        scale, zero = parts.kept(both)
        assert zero is not None
        own = (scale, zero) if axis == 0 else (scale[lines], zero[lines])
        found = parts.rounded(parts.rounded(q.astype(np.float32) - own[1], dtype) * own[0], dtype)
        return found.reshape(-1)[start - lines[0] * across :][: stop - start].reshape(-1, columns)

    return parts.floats(dtype, (rows, columns), values, stored)


def _shape(stored: Stored) -> tuple[int, int]:
    shape = [int(n) for n in stored.array(".shape", ("I64", "I32"), (2,))]
    rows, columns = parts.checked(stored, tuple(shape))
    return rows, columns


def _text(stored: Stored, part: str) -> str:
    data = stored.array(part, ("U8",), (None,))
    return data[:64].tobytes().decode("latin-1")


def _number(stored: Stored, part: str) -> int:
    return int(stored.array(part, WHOLE, (), (1,)).reshape(-1)[0])
