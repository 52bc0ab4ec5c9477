"""Writing GGUF version 3: one tensor in memory at a time, and a file that is there whole or not at all."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import IO, cast

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf.reader import alignment_of
from cutaway.gguf.types import (
    ARRAY,
    BOOL,
    IDS,
    MAGIC,
    MAX_DIMS,
    MAX_KEY,
    MAX_TENSOR_NAME,
    STRING,
    TYPES,
    U32,
    U64,
    Later,
    Packed,
)
from cutaway.store.files import atomic_file


def write(
    target: str | os.PathLike[str] | io.BytesIO,
    metadata: Mapping[str, object],
    tensors: Mapping[str, Packed | Later] | Iterable[tuple[str, Packed | Later]],
    *,
    force: bool = True,
) -> None:
    """Write a GGUF version 3 file, complete or not at all, or into an open file.

    `force` False refuses to replace a file. A Python int is stored as uint32 (int32, uint64, int64 where it
    does not fit), a float as float32, lists of them as int32 and float32 arrays; numpy scalars and arrays
    keep their own width. UserError for a value that GGUF cannot hold.
    """
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    named = list(cast(Iterable[tuple[str, Packed | Later]], pairs))
    if isinstance(target, str | os.PathLike):
        path, opened = Path(target), atomic_file(target, force=force)
    else:
        path, opened = Path("vocabulary.gguf"), nullcontext(target)
    alignment = alignment_of(path, metadata)
    header = b"".join(_header(metadata, named, alignment))
    with opened as out:
        _pour(out, header, alignment)
        for name, tensor in named:
            packed = made(name, tensor)
            _pour(out, np.ascontiguousarray(packed.data).reshape(-1).data, alignment)


def made(name: str, tensor: Packed | Later) -> Packed:
    """The tensor itself; UserError if what was made is not what was announced."""
    if isinstance(tensor, Packed):
        return tensor
    packed = tensor.make()
    if (packed.type, packed.shape) != (tensor.type, tensor.shape):
        raise UserError(
            f"the tensor {quoted(name)} was announced as {tensor.type} {tensor.shape} but is {packed.type} "
            f"{packed.shape}"
        )
    return packed


def _pour(out: IO[bytes] | io.BytesIO, data: bytes | memoryview, alignment: int) -> None:
    """Write `data` and zeros up to the alignment."""
    out.write(data)
    out.write(bytes(-len(data) % alignment))


def _header(
    metadata: Mapping[str, object], tensors: list[tuple[str, Packed | Later]], alignment: int
) -> Iterator[bytes]:
    yield MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        if len(key.encode()) > MAX_KEY:
            raise UserError(f"the metadata key {quoted(key)} is longer than GGUF's {MAX_KEY} bytes")
        yield _pack_text(key, key)
        yield from _pack(key, value)
    offset, seen = 0, set()
    for name, tensor in tensors:
        _check_tensor(name, tensor, seen)
        seen.add(name)
        yield _pack_text(name, name) + U32.pack(len(tensor.shape))
        yield struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        yield struct.pack("<IQ", TYPES[tensor.type].id, offset)
        offset += tensor.nbytes + -tensor.nbytes % alignment


def _check_tensor(name: str, tensor: Packed | Later, seen: set[str]) -> None:
    if name in seen:
        raise UserError(f"the tensor {quoted(name)} was given twice")
    if len(name.encode()) > MAX_TENSOR_NAME:
        raise UserError(
            f"the tensor name {quoted(name)} is longer than {MAX_TENSOR_NAME} bytes, the limit elsewhere"
        )
    if tensor.type not in TYPES:
        raise UserError(f"the tensor {quoted(name)} is {tensor.type}, which GGUF has no type for")
    if len(tensor.shape) > MAX_DIMS:
        raise UserError(f"the tensor {quoted(name)} has over {MAX_DIMS} dimensions, GGUF's limit")


def _pack_text(key: str, text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{quoted(key)} holds text that is not valid Unicode") from None
    return U64.pack(len(data)) + data


def _pack(key: str, value: object) -> Iterator[bytes]:
    if isinstance(value, str):
        yield U32.pack(STRING) + _pack_text(key, value)
    elif isinstance(value, (list, tuple, np.ndarray)):
        yield from _pack_sequence(key, value)
    else:
        number = _number(key, value)
        yield U32.pack(_type_id(key, number.dtype)) + number.tobytes()


def _pack_sequence(key: str, values: list[object] | tuple[object, ...] | np.ndarray) -> Iterator[bytes]:
    if isinstance(values, np.ndarray) and values.dtype.kind in "OUS":
        values = values.tolist()
    if not isinstance(values, np.ndarray) and all(isinstance(value, str) for value in values):
        yield struct.pack("<IIQ", ARRAY, STRING, len(values))
        yield from (_pack_text(key, str(value)) for value in values)
        return
    numbers = values if isinstance(values, np.ndarray) else _number_array(key, values)
    if numbers.ndim != 1:
        raise UserError(f"{quoted(key)} has {numbers.ndim} dimensions; a GGUF metadata array has one")
    yield struct.pack("<IIQ", ARRAY, _type_id(key, numbers.dtype), len(numbers))
    yield numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()


def _type_id(key: str, dtype: np.dtype) -> int:
    if dtype == np.bool_:
        return BOOL
    number = IDS.get(dtype.newbyteorder("<"))
    if number is None:
        raise UserError(f"the metadata value of {quoted(key)} has the type {dtype}, which GGUF cannot hold")
    return number


def _number(key: str, value: object) -> np.ndarray:
    """A scalar as the little-endian array of no dimensions that is written."""
    if isinstance(value, np.generic):
        return np.array(value, value.dtype.newbyteorder("<"))
    if isinstance(value, bool):
        return np.array(value)
    if isinstance(value, int):
        return np.array(value, _fitting(key, value, value, ("<u4", "<i4", "<u8", "<i8")))
    if isinstance(value, float):
        return _float32(key, value)
    raise UserError(f"{quoted(key)} is a {type(value).__name__}, which GGUF metadata cannot hold")


def _number_array(key: str, values: list[object] | tuple[object, ...]) -> np.ndarray:
    kinds = {type(value) for value in values}
    if kinds == {bool} or (len(kinds) == 1 and issubclass(next(iter(kinds)), np.generic)):
        return np.array(values)
    if kinds == {int}:
        whole = [value for value in values if isinstance(value, int)]
        return np.array(whole, _fitting(key, min(whole), max(whole), ("<i4", "<u4", "<i8", "<u8")))
    if kinds <= {int, float}:
        return _float32(key, values)
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise UserError(f"the metadata value of {quoted(key)} is a list of {names}; GGUF arrays hold one type")


def _fitting(key: str, low: int, high: int, choices: tuple[str, ...]) -> str:
    for choice in choices:
        limits = np.iinfo(choice)
        if limits.min <= low and high <= limits.max:
            return choice
    raise UserError(f"the metadata value of {quoted(key)} is an integer beyond 64 bits")


def _float32(key: str, value: object) -> np.ndarray:
    wide = np.array(value, np.float64)
    with np.errstate(over="ignore"):
        narrow = wide.astype("<f4")
    if not np.array_equal(np.isfinite(wide), np.isfinite(narrow)):
        raise UserError(f"the metadata value of {quoted(key)} is beyond float32; give it as numpy.float64")
    return narrow
