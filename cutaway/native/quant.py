"""Unpacking GGML's weight types (native/quant.cpp); its twin is cutaway/weights/quant.py."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, NamedTuple

from cutaway.errors import Refused
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
    "BF16": Layout(30, 1, 2),
}


def unpack(type: str, blocks: np.ndarray, out: np.ndarray, threads: int | None = None) -> None:
    """Unpacks the bytes of a GGML type (uint8) into `out` (float32), both contiguous, on several threads."""
    import numpy as np

    call = function(
        "cutaway_unpack", ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int32
    )
    layout = LAYOUTS.get(type)
    if layout is None:
        raise Refused(f"The native core has no weight type {type!r}; it unpacks {', '.join(LAYOUTS)}.")
    check("blocks", blocks, np.uint8)
    check("out", out, np.float32, written=True)
    if out.size % layout.block or blocks.size != out.size // layout.block * layout.bytes:
        raise Refused(
            f"{blocks.size} bytes of {type} do not hold {out.size} values; "
            f"{layout.bytes} bytes hold {layout.block}."
        )
    count = library.threads() if threads is None else threads
    call(layout.id, blocks.ctypes.data, out.size, out.ctypes.data, count)
