"""Shared by the readers of quantized folders: a weight's tensors, and values that are made when read.

A quantised weight is several tensors of a folder. ``Stored`` has them by the parts of their names and checks
types and shapes; ``Rows`` is the ``Packed.data`` of the weight that they mean, of which only the rows that
are indexed are made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import Packed, packed_shape
from cutaway.quantization import formats

KINDS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}
KINDS |= {"U8": "u1", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1"}
FLOATS = ("F32", "F16", "BF16")
WHOLE = ("I32", "I64", "I16", "I8", "U8")
COLUMNS = 1 << 24  # of a row: no weight's are more, and each is made whole
Make = Callable[[int, int], np.ndarray]
Scales = Callable[[], tuple[np.ndarray, np.ndarray | None]]  # of a weight, and its zeros
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Stored:
    """The tensors of one weight, of this ``name``, by the part of theirs; ``where`` is the folder."""

    name: str
    where: object
    tensors: Mapping[str, Packed]

    def __contains__(self, part: str) -> bool:
        return part in self.tensors

    def refusal(self, why: str) -> UserError:
        return UserError(f"{self.where}: the weight {quoted(self.name)} {why}")

    def type(self, part: str) -> str:
        """The type that a part is stored as, "" where there is none."""
        return self.tensors[part].type if part in self.tensors else ""

    def array(self, part: str, types: tuple[str, ...], *shapes: Shape) -> np.ndarray:
        """A part as it is stored, of one of these types and shapes (None: any length); mapped, not copied."""
        packed = self.tensors.get(part)
        if packed is None:
            raise self.refusal(f"has no {part.lstrip('._')}: get all of the folder's files")
        fits = [
            len(shape) == len(packed.shape)
            and all(wanted in (None, own) for wanted, own in zip(shape, packed.shape, strict=True))
            for shape in shapes
        ]
        if packed.type not in types or (shapes and not any(fits)):
            spelt = " or ".join(
                " x ".join("any" if n is None else str(n) for n in shape) or "one number" for shape in shapes
            )
            own = " x ".join(map(str, packed.shape)) or "one number"
            raise self.refusal(
                f"has the part {part.lstrip('._')} as {packed.type} of {own}, "
                f"where {' or '.join(types)}{f' of {spelt}' if spelt else ''} is needed"
            )
        return packed.data.reshape(-1).view(KINDS[packed.type]).reshape(packed.shape)

    def floats(self, part: str, *shapes: Shape) -> np.ndarray:
        """A part in float32."""
        return widened(self.array(part, FLOATS, *shapes), self.type(part))

    def number(self, part: str) -> np.float32:
        """A part that is one number."""
        return self.floats(part, (), (1,), (1, 1)).reshape(-1)[0]

    @property
    def nbytes(self) -> int:
        return sum(packed.nbytes for packed in self.tensors.values())


@lru_cache(maxsize=4)
def kept(scales: Scales) -> tuple[np.ndarray, np.ndarray | None]:
    """A weight's scales and zeros: of the last few weights alone, for those of a model take its tenth."""
    return scales()


def widened(array: np.ndarray, type: str) -> np.ndarray:
    """Stored floats in float32."""
    if type == "BF16":
        return (np.atleast_1d(array).astype(np.uint32) << 16).view(np.float32).reshape(array.shape)
    return np.asarray(array, np.float32)


def rounded(values: np.ndarray, type: str) -> np.ndarray:
    """Float32 rounded to a type of 16 bits, in float32 again."""
    with np.errstate(over="ignore"):
        if type == "F16":
            return values.astype(np.float16).astype(np.float32)
    return widened(stored_as(values, "BF16").view("<u2"), "BF16") if type == "BF16" else values


def stored_as(values: np.ndarray, type: str) -> np.ndarray:
    """Float32 [... n] as the bytes of a float type, uint8 [... bytes], rounded where the type is shorter."""
    values = np.ascontiguousarray(values, np.float32)
    if type == "F32":
        return values.view(np.uint8)
    if type == "F16":
        with np.errstate(over="ignore"):
            return values.astype("<f2").view(np.uint8)
    return formats.write_bf16(values)


class Rows:
    """The ``Packed.data`` of a weight that is stored otherwise: uint8 of ``shape``, made as it is indexed.

    ``make(first, last)`` gives the entries of the first axis from ``first`` up to ``last``.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, shape: tuple[int, ...], make: Make, stored: Stored) -> None:
        self.shape, self.ndim, self.nbytes, self._make = shape, len(shape), stored.nbytes, make
        self.base = max(stored.tensors.values(), key=lambda each: each.nbytes).data  # mapped from the file

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        if isinstance(first, (int, np.integer)):
            at = range(len(self))[first]
            made = self._make(at, at + 1)[0]
        elif isinstance(first, slice) and (found := range(len(self))[first]).step == 1:
            made = self._make(found.start, max(found.start, found.stop))
        else:
            return np.asarray(self)[index]
        return made[rest] if rest else made

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        made = self._make(0, len(self))
        return made if dtype is None else made.astype(dtype, copy=False)

    def view(self, dtype: Any) -> np.ndarray:
        return np.asarray(self).view(dtype)

    def reshape(self, *shape: Any) -> np.ndarray:
        return np.asarray(self).reshape(*shape)


def made(type: str, shape: tuple[int, ...], make: Make, stored: Stored) -> Packed:
    """A weight of this type whose rows ``make`` gives as bytes."""
    data: Any = Rows(packed_shape(type, shape), make, stored)
    return Packed(type, shape, data)


def floats(type: str, shape: tuple[int, ...], values: Make, stored: Stored) -> Packed:
    """A weight of a float type whose rows ``values`` gives as float32, rounded where the type is shorter."""

    def make(first: int, last: int) -> np.ndarray:
        with np.errstate(all="ignore"):  # a scale may be infinite or NaN: so is the value, and is named
            return stored_as(values(first, last), type)

    return made(type, shape, make, stored)


def checked(stored: Stored, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a weight; UserError where it is nothing's or beyond any memory."""
    if not all(n > 0 for n in shape) or shape[-1] > COLUMNS or math.prod(shape) > 1 << 40:
        raise stored.refusal(f"has the shape {' x '.join(map(str, shape))}, which no weight has")
    return shape
