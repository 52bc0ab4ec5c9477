"""GGML's weight types unpacked, and packed by search (native/weights/quant.cpp, quant_search.cpp).

The reference implementations are cutaway/quantization/formats.py and search.py.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, NamedTuple

from cutaway.errors import UserError
from cutaway.native import library
from cutaway.native.library import check, function

if TYPE_CHECKING:
    import numpy as np


class Layout(NamedTuple):
    """A GGML type's number, and how many `bytes` hold a `block` of values."""

    id: int
    block: int
    bytes: int


LAYOUTS = {
    "F32": Layout(0, 1, 4),
    "F16": Layout(1, 1, 2),
    "Q4_0": Layout(2, 32, 18),
    "Q4_1": Layout(3, 32, 20),
    "Q5_0": Layout(6, 32, 22),
    "Q5_1": Layout(7, 32, 24),
    "Q8_0": Layout(8, 32, 34),
    "Q2_K": Layout(10, 256, 84),
    "Q3_K": Layout(11, 256, 110),
    "Q4_K": Layout(12, 256, 144),
    "Q5_K": Layout(13, 256, 176),
    "Q6_K": Layout(14, 256, 210),
    "IQ4_NL": Layout(20, 32, 18),
    "IQ4_XS": Layout(23, 256, 136),
    "BF16": Layout(30, 1, 2),
    "MXFP4": Layout(39, 32, 17),
}


def unpack(type: str, blocks: np.ndarray, out: np.ndarray, threads: int | None = None) -> None:
    """Unpacks the bytes of a GGML type (uint8) into `out` (float32), both contiguous, on several threads."""
    import numpy as np

    call = function(
        "cutaway_unpack", ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int32
    )
    layout = LAYOUTS.get(type)
    if layout is None:
        raise UserError(f"The native core has no weight type {type!r}; it unpacks {', '.join(LAYOUTS)}.")
    check("blocks", blocks, np.uint8)
    check("out", out, np.float32, written=True)
    if out.size % layout.block or blocks.size != out.size // layout.block * layout.bytes:
        raise UserError(
            f"{blocks.size} bytes of {type} do not hold {out.size} values; "
            f"{layout.bytes} bytes hold {layout.block}."
        )
    count = library.threads() if threads is None else threads
    call(layout.id, blocks.ctypes.data, out.size, out.ctypes.data, count)


def fit(
    type: str, array: np.ndarray, importance: np.ndarray | None, out: np.ndarray, threads: int | None = None
) -> None:
    """Packs finite weights (float32 [... columns]) into `out` (uint8) so that the error that counts is least.

    `importance` float32 [columns], above zero: how much an error in each column counts; None is the same.
    """
    import numpy as np

    arguments = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
    call = function("cutaway_quant_search", ctypes.c_int32, *arguments, ctypes.c_int32, result=ctypes.c_int32)
    layout, columns = LAYOUTS[type], array.shape[-1]
    check("array", array, np.float32)
    check("out", out, np.uint8, written=True)
    if columns % layout.block or out.size != array.size // layout.block * layout.bytes:
        raise UserError(f"{out.size} bytes of {type} do not hold {array.size} values in rows of {columns}.")
    address = None
    if importance is not None:
        check("importance", importance, np.float32)
        if importance.shape != (columns,):
            raise UserError(f"importance has the shape {importance.shape}, and {columns} numbers are needed.")
        address = importance.ctypes.data
    count = library.threads() if threads is None else threads
    if call(layout.id, array.ctypes.data, array.size, columns, address, out.ctypes.data, count):
        raise UserError(f"The native core does not fit weights to {type}.")
