"""MXFP4 as gpt-oss's folders have it: a tensor of blocks and one of scales, read as GGUF's type of that name.

``NAME_blocks`` uint8 [e rows groups 16] holds two numbers a byte, neighbours in the low and the high nibble;
``NAME_scales`` uint8 [e rows groups] one exponent a group of 32. Nothing is converted before an expert is
asked for.
"""

from __future__ import annotations

import numpy as np

from cutaway.gguf import Packed
from cutaway.weights.fields import Fields
from cutaway.weights.quantized import fp4
from cutaway.weights.quantized import stored as parts
from cutaway.weights.quantized.method import Method, keys, listed
from cutaway.weights.quantized.stored import Stored

NAME = "MXFP4"


def read(fields: Fields) -> Method:
    """The method of a config's section."""
    ignored = listed(fields, "modules_to_not_convert")
    fields.finish(keys("quant_method dequantize"), f"{NAME} has")
    return Method(NAME, ("_scales",), _weight, main="_blocks", bits=4, group=32, ignored=ignored)


def _weight(stored: Stored) -> Packed:
    blocks = stored.array("_blocks", ("U8",), (None, None, None, 16))
    scales = stored.array("_scales", ("U8",), blocks.shape[:-1])
    shape = parts.checked(stored, (*scales.shape[:-1], 32 * scales.shape[-1]))

    def make(first: int, last: int) -> np.ndarray:
        return fp4.interleaved(blocks[first:last], scales[first:last])

    return parts.made(NAME, shape, make, stored)
