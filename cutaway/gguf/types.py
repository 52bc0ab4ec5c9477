"""GGUF's storage types, their blocks, and a tensor as the bytes of its file."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cutaway.errors import UserError, quoted


class GGMLType(NamedTuple):
    """One storage type: its number in a GGUF file, and how many `bytes` hold a `block` of values."""

    id: int
    block: int
    bytes: int


TYPES: dict[str, GGMLType] = {
    "F32": GGMLType(0, 1, 4),
    "F16": GGMLType(1, 1, 2),
    "Q4_0": GGMLType(2, 32, 18),
    "Q4_1": GGMLType(3, 32, 20),
    "Q5_0": GGMLType(6, 32, 22),
    "Q5_1": GGMLType(7, 32, 24),
    "Q8_0": GGMLType(8, 32, 34),
    "Q2_K": GGMLType(10, 256, 84),
    "Q3_K": GGMLType(11, 256, 110),
    "Q4_K": GGMLType(12, 256, 144),
    "Q5_K": GGMLType(13, 256, 176),
    "Q6_K": GGMLType(14, 256, 210),
    "IQ2_XXS": GGMLType(16, 256, 66),
    "IQ2_XS": GGMLType(17, 256, 74),
    "IQ3_XXS": GGMLType(18, 256, 98),
    "IQ1_S": GGMLType(19, 256, 50),
    "IQ4_NL": GGMLType(20, 32, 18),
    "IQ3_S": GGMLType(21, 256, 110),
    "IQ2_S": GGMLType(22, 256, 82),
    "IQ4_XS": GGMLType(23, 256, 136),
    "I8": GGMLType(24, 1, 1),
    "I16": GGMLType(25, 1, 2),
    "I32": GGMLType(26, 1, 4),
    "I64": GGMLType(27, 1, 8),
    "F64": GGMLType(28, 1, 8),
    "IQ1_M": GGMLType(29, 256, 56),
    "BF16": GGMLType(30, 1, 2),
    "TQ1_0": GGMLType(34, 256, 54),
    "TQ2_0": GGMLType(35, 256, 66),
    "MXFP4": GGMLType(39, 32, 17),
    "NVFP4": GGMLType(40, 64, 36),
    "Q1_0": GGMLType(41, 128, 18),
}
NO_WEIGHTS = ("I8", "I16", "I32", "I64", "F64")  # which no matrix is stored as

# Types of other containers, in bytes a value: they can be carried, and are refused where numbers are wanted.
FOREIGN: dict[str, int] = {"BOOL": 1, "U8": 1, "U16": 2, "U32": 4, "U64": 8, "C64": 8}
FOREIGN |= {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}

# Types that are named where they are refused, by their numbers.
_UNSUPPORTED = """4 Q4_2, 5 Q4_3, 9 Q8_1, 15 Q8_K, 31 Q4_0_4_4, 32 Q4_0_4_8, 33 Q4_0_8_8, 36 IQ4_NL_4_4,
37 IQ4_NL_4_8, 38 IQ4_NL_8_8"""
UNSUPPORTED = {int(number): name for number, name in map(str.split, _UNSUPPORTED.split(","))}

NAMES = {kind.id: name for name, kind in TYPES.items()}
_NUMBERS = "0 u1, 1 i1, 2 u2, 3 i2, 4 u4, 5 i4, 6 f4, 10 u8, 11 i8, 12 f8"
DTYPES = {int(number): np.dtype(f"<{name}") for number, name in map(str.split, _NUMBERS.split(","))}
IDS = {dtype: number for number, dtype in DTYPES.items()}
BOOL, STRING, ARRAY = 7, 8, 9
SMALLEST = {BOOL: 1, STRING: 8} | {number: dtype.itemsize for number, dtype in DTYPES.items()}
U32, U64 = struct.Struct("<I"), struct.Struct("<Q")

MAGIC = b"GGUF"
ALIGNMENT = 32
MAX_DIMS = 4
MAX_NAMED = 1 << 16
MAX_KEY = (1 << 16) - 1
MAX_TENSOR_NAME = 63
CHUNK = 1 << 16


def row_bytes(type: str, width: int) -> int:
    """Bytes of a row of `width` values; UserError for an unknown type or a broken block."""
    if type in FOREIGN:
        return width * FOREIGN[type]
    kind = TYPES.get(type)
    if kind is None:
        raise UserError(f"there is no storage type {quoted(type)}; known are {', '.join(TYPES)}")
    if width % kind.block:
        raise UserError(f"a row of {width} values cannot be stored as {type}, whose blocks hold {kind.block}")
    return width // kind.block * kind.bytes


if TYPE_CHECKING:
    Bytes = np.ndarray
else:
    Bytes = Any  # an array, or what makes rows of one when it is indexed (weights/quantized)


@dataclass(frozen=True, eq=False)
class Packed:
    """A tensor as stored: `shape` is row-major, `data` is uint8 of shape (*shape[:-1], bytes of a row)."""

    type: str
    shape: tuple[int, ...]
    data: Bytes

    def __post_init__(self) -> None:
        expected = packed_shape(self.type, self.shape)
        if self.data.dtype != np.uint8 or self.data.shape != expected:
            found = f"{self.data.dtype} of {self.data.shape}"
            raise UserError(f"{self.type} {self.shape} is stored as uint8 {expected}, not as {found}")

    @property
    def nbytes(self) -> int:
        """Bytes on disk and in memory."""
        return self.data.nbytes

    def rows(self, index: np.ndarray | Iterable[int] | slice) -> Packed:
        """The entries `index` of the first axis, in that order and still packed; a slice copies nothing."""
        if not self.shape:
            raise UserError("a scalar has no rows to select")
        index = index if isinstance(index, (slice, np.ndarray)) else np.asarray(list(index), dtype=np.int64)
        if len(self.shape) > 1:
            data = self.data[index]
            return Packed(self.type, (data.shape[0], *self.shape[1:]), data)
        if self.type in TYPES and TYPES[self.type].block > 1:
            raise UserError(f"single values of a {self.type} vector cannot be selected: they share blocks")
        values = self.data.reshape(-1, row_bytes(self.type, 1))[index]
        return Packed(self.type, (values.shape[0],), values.reshape(-1))


@dataclass(frozen=True)
class Later:
    """A tensor to be made when the writer reaches it, so that a whole model need not be in memory at once."""

    type: str
    shape: tuple[int, ...]
    make: Callable[[], Packed]

    @property
    def nbytes(self) -> int:
        """Bytes on disk, known before it is made."""
        return math.prod(packed_shape(self.type, self.shape))


def packed_shape(type: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the uint8 array that stores a tensor."""
    return (*shape[:-1], row_bytes(type, shape[-1] if shape else 1))
