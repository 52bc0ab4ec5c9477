"""Weights as panels, and their products with vectors, by the kernels of the runtime's step."""

import ctypes

import numpy as np

from cutaway.errors import UserError
from cutaway.native import library
from cutaway.native.library import check, function
from cutaway.native.quant import LAYOUTS

TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
TYPES += ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4")
PANEL = 16  # rows of a panel
LINE = 64  # bytes of a line of the caches
LACKS = 4  # native/runtime/matmul.hpp's kLacks

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class Matrix(ctypes.Structure):
    """native/runtime/matmul.hpp's Matrix."""

    _fields_ = [
        ("panels", _POINTER),
        ("bias", _POINTER),
        ("type", _INT),
        ("rows", _INT),
        ("columns", _INT),
        ("spare", _INT),
    ]


class Vectors(ctypes.Structure):
    """native/runtime/matmul.hpp's Vectors."""

    _fields_ = [
        *((name, _POINTER) for name in ("x", "rounded", "bf16", "q", "scale", "shift", "lacks")),
        ("width", _LONG),
        ("count", _LONG),
    ]


def packed_bytes(type: str, rows: int, columns: int) -> int:
    """Bytes that hold a matrix as panels: those of the file, but for a last panel that is filled up."""
    call = function("cutaway_packed_bytes", _INT, _LONG, _LONG, result=_LONG)
    return call(_number(type), rows, columns)


def pack(
    type: str,
    rows: int,
    columns: int,
    data: np.ndarray,
    out: np.ndarray,
    first_row: int = 0,
    threads: int | None = None,
) -> None:
    """Lays a matrix (uint8, as in the file) out as panels in `out`; UserError for one not finite.

    ``first_row`` is the matrix's own first row, from which the message counts.
    """
    call = function("cutaway_pack", _INT, _POINTER, _LONG, _LONG, _POINTER, _INT, result=_LONG)
    check("data", data, np.uint8)
    check("out", out, np.uint8, written=True)
    layout = LAYOUTS[type]
    if columns % layout.block or data.size != rows * (columns // layout.block) * layout.bytes:
        raise UserError(f"{data.size} bytes of {type} are not {rows} rows of {columns} values.")
    if out.size != packed_bytes(type, rows, columns):
        raise UserError(f"out has {out.size} bytes, and {packed_bytes(type, rows, columns)} are needed.")
    threads = library.threads() if threads is None else threads
    broken = call(_number(type), data.ctypes.data, rows, columns, out.ctypes.data, threads)
    if broken >= 0:
        raise UserError(f"row {first_row + broken} holds a weight that is infinite or not a number")


def multiply(
    type: str,
    rows: int,
    columns: int,
    panels: np.ndarray,
    x: np.ndarray,
    threads: int = 1,
    parallel: int | None = None,
) -> np.ndarray:
    """W x for vectors x float32 [n columns]: float32 [n rows], by the kernel that a step uses.

    ``parallel``: whose threads, as ``native.train.Workers`` has it."""
    call = function(
        "cutaway_multiply",
        *(ctypes.POINTER(Matrix), ctypes.POINTER(Vectors), _INT, _POINTER, _INT, _POINTER),
        result=None,
    )
    check("panels", panels, np.uint8)
    if panels.size != packed_bytes(type, rows, columns) or x.shape[1:] != (columns,):
        raise UserError(f"The panels or the vectors are not those of {rows} rows of {columns} values.")
    n, width = len(x), -(-columns // 32) * 32
    padded = np.ascontiguousarray(x, np.float32)
    if width != columns:
        padded = np.zeros((n, width), np.float32)
        padded[:, :columns] = x
    # The core fills what it reads, and all of ``out``: zeros would be written twice.
    narrow = (n if type == "BF16" else 0, width)
    rounded, bf16, q = (
        np.empty(narrow, np.float32),
        np.empty(narrow, np.uint16),
        np.empty((n, width), np.int8),
    )
    lacks = np.empty((n, width // 32, LACKS), np.int32)
    scale, shift = np.empty((2, n, width // 32), np.float32)
    width_out = -(-rows // PANEL) * PANEL
    out = lined(4 * n * width_out).view(np.float32).reshape(n, width_out)
    matrix = Matrix(panels.ctypes.data, None, _number(type), rows, columns, 0)
    halves = (rounded.ctypes.data, bf16.ctypes.data) if type == "BF16" else (None, None)
    others = (a.ctypes.data for a in (q, scale, shift, lacks))
    vectors = Vectors(padded.ctypes.data, *halves, *others, width, n)
    call(matrix, vectors, n, out.ctypes.data, threads, parallel)
    return out[:, :rows]


def lined(size: int) -> np.ndarray:
    """uint8 [size] that begins where a line of the caches does: a panel's rows are one line each."""
    room = np.empty(size + LINE, np.uint8)
    first = -room.ctypes.data % LINE
    return room[first : first + size]


def products(rounds: int) -> int:
    """Makes products of bytes on this thread, nothing else, and returns how many they were."""
    return function("cutaway_products", _LONG, result=_LONG)(rounds)


def _number(type: str) -> int:
    if type not in TYPES:
        raise UserError(f"The runtime has no kernel for weights of type {type}; it has {', '.join(TYPES)}.")
    return LAYOUTS[type].id
