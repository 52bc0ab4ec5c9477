"""Reading GGUF, versions 2 and 3: untrusted data, each number checked before it is used."""

from __future__ import annotations

import codecs
import math
import mmap
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf.container import looks_like, mapped
from cutaway.gguf.types import (
    ALIGNMENT,
    ARRAY,
    BOOL,
    CHUNK,
    DTYPES,
    MAGIC,
    MAX_DIMS,
    MAX_KEY,
    MAX_NAMED,
    NAMES,
    SMALLEST,
    STRING,
    TYPES,
    U32,
    U64,
    UNSUPPORTED,
    Packed,
    packed_shape,
)


class Metadata(dict[str, object]):
    """A GGUF file's metadata: str, bool, numpy scalars of the stored width, numpy arrays, and list[str].

    Long texts and string arrays are checked when the file is opened and become Python objects when first
    asked for: a vocabulary as Python strings is several times the size of the file it came from.
    """

    def __getitem__(self, key: str) -> object:
        value = dict.__getitem__(self, key)
        if isinstance(value, _Undecoded):
            value = value.decode()
            self[key] = value
        return value

    # Unlike dict's own, these read every value by `__getitem__`.
    get, items, values, __eq__ = Mapping.get, Mapping.items, Mapping.values, Mapping.__eq__  # type: ignore[assignment]

    def pop(self, key: str, *default: object) -> object:
        if key in self:
            self[key] = self[key]
        return super().pop(key, *default)

    def copy(self) -> dict[str, object]:
        return dict(self.items())

    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self)

    def __repr__(self) -> str:
        return repr(self._decoded())

    def __or__(self, other):
        return self._decoded() | other

    def __ror__(self, other):
        return other | self._decoded()

    def __reduce__(self):
        return dict, (self._decoded(),)

    def _decoded(self) -> dict[str, object]:
        return {key: self[key] for key in self}


@dataclass(frozen=True)
class File:
    """An open GGUF file: the first part's `path` and `version`, metadata, and tensors mapped from disk."""

    version: int
    metadata: dict[str, object]
    tensors: dict[str, Packed]
    path: Path


def read(path: str | os.PathLike[str]) -> File:
    """Open a GGUF file, with its other parts where it is split; UserError if anything is wrong."""
    file = _read_one(Path(path))
    count = _split_number(file, "split.count", 1)
    return file if count == 1 else _join(file, count)


class _Undecoded:
    """Texts of a mapped file, known to be UTF-8, not yet Python strings."""

    def __init__(self, buffer: mmap.mmap, first: int, count: int, many: bool):
        self.buffer, self.first, self.count, self.many = buffer, first, count, many

    def decode(self) -> str | list[str]:
        texts = list(self._texts())
        return texts if self.many else texts[0]

    def _texts(self) -> Iterator[str]:
        buffer, position = self.buffer, self.first
        for _ in range(self.count):
            start = position + 8
            position = start + U64.unpack_from(buffer, position)[0]
            yield str(buffer[start:position], "utf-8")


class _Cursor:
    """A position in a mapped file that never leaves it."""

    def __init__(self, path: Path, buffer: mmap.mmap):
        self.path, self.buffer, self.position, self.size = path, buffer, 0, len(buffer)

    def refusal(self, why: str) -> UserError:
        return UserError(f"{self.path}: {why}")

    @property
    def left(self) -> int:
        return self.size - self.position

    def skip(self, count: int, what: str) -> int:
        """Step over `count` bytes and return where they start."""
        if count > self.left:
            raise self.refusal(
                f"{what} needs {count} bytes at byte {self.position} but {self.left} are left; "
                "the file is cut short or damaged, get it again"
            )
        start = self.position
        self.position += count
        return start

    def u32(self, what: str) -> int:
        return U32.unpack_from(self.buffer, self.skip(4, what))[0]

    def u64(self, what: str) -> int:
        return U64.unpack_from(self.buffer, self.skip(8, what))[0]

    def count(self, smallest: int, what: str) -> int:
        """A number of things to come, of at least `smallest` bytes each."""
        count = self.u64(what)
        if count * smallest > self.left:
            raise self.refusal(
                f"{what} is {count}, more than the {self.left} bytes that follow could hold; "
                "the file is cut short or damaged, get it again"
            )
        return count

    def name(self, what: str) -> str:
        length = self.u64(f"the length of {what}")
        if length > MAX_KEY:
            raise self.refusal(f"{what} is {length} bytes long; GGUF allows {MAX_KEY}")
        start = self.skip(length, what)
        try:
            return str(self.buffer[start : self.position], "utf-8")
        except UnicodeDecodeError:
            raise self.refusal(f"{what} is not UTF-8 text") from None

    def text(self, what: str) -> str | _Undecoded:
        first = self.texts(1, what)
        if self.position - first > CHUNK:
            return _Undecoded(self.buffer, first, 1, many=False)
        return str(self.buffer[first + 8 : self.position], "utf-8")

    def texts(self, count: int, what: str) -> int:
        """Offsets of `count` strings, each after its length; checked to be UTF-8 inside the file."""
        first = run = position = self.position
        buffer, size, unpack = self.buffer, self.size, U64.unpack_from
        try:
            for number in range(count):
                length = unpack(buffer, position)[0]
                start = position + 8
                if length > size - start:
                    raise self.refusal(f"{what} has a string (number {number}) past the end of the file")
                if length > 127:
                    _check_utf8(buffer, run, position)
                    _check_utf8(buffer, start, start + length)
                    run = start + length
                position = start + length
            _check_utf8(buffer, run, position)
        except struct.error:
            raise self.refusal(f"{what} is cut short: it announced {count} strings") from None
        except UnicodeDecodeError:
            raise self.refusal(f"{what} is not UTF-8 text") from None
        self.position = position
        return first


def _check_utf8(buffer: mmap.mmap, start: int, stop: int) -> None:
    """Raise UnicodeDecodeError unless the bytes are UTF-8; strings may be in it together with their lengths.

    A length below 128 is eight bytes of ASCII, which ends any sequence that the string before it left
    unfinished: a run of short strings is valid as a whole only if each of them is.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(start, stop, CHUNK):
        decoder.decode(buffer[at : min(at + CHUNK, stop)])
    decoder.decode(b"", final=True)


def _read_one(path: Path) -> File:
    buffer = mapped(path)
    cursor = _Cursor(path, buffer)
    version = _check_version(cursor)
    tensor_count = cursor.count(24, "the number of tensors")
    key_count = cursor.count(13, "the number of metadata keys")
    for count, what in (tensor_count, "tensors"), (key_count, "metadata keys"):
        if count > MAX_NAMED:
            raise cursor.refusal(f"it claims {count} {what}; at most {MAX_NAMED} are read")
    metadata = Metadata()
    for _ in range(key_count):
        key = cursor.name("a metadata key")
        if key in metadata:
            raise cursor.refusal(f"the metadata key {quoted(key)} is there twice")
        metadata[key] = _value(cursor, cursor.u32("a metadata type"), f"the metadata value of {quoted(key)}")
    table = _table(cursor, tensor_count)
    alignment = alignment_of(path, metadata)
    return File(version, metadata, _tensors(cursor, table, alignment), path)


def _check_version(cursor: _Cursor) -> int:
    head = cursor.buffer[:1024]
    if not head.startswith(MAGIC):
        if MAGIC.startswith(head):
            raise cursor.refusal("is cut short within its first four bytes; get it again")
        raise cursor.refusal(f"is not a GGUF file; it looks like {looks_like(head)}")
    cursor.skip(4, "the magic")
    version = cursor.u32("the version")
    if version and not version & 0xFFFF:
        raise cursor.refusal("is a big-endian GGUF file; only little-endian ones are read, convert it")
    if version not in (2, 3):
        raise cursor.refusal(f"has GGUF version {version}; 2 and 3 are read, convert it again")
    return version


def _value(cursor: _Cursor, kind: int, what: str) -> object:
    if kind == STRING:
        return cursor.text(what)
    if kind == BOOL or kind in DTYPES:
        return (
            _numbers(cursor, kind, 1, what)[0].item() if kind == BOOL else _numbers(cursor, kind, 1, what)[0]
        )
    if kind == ARRAY:
        return _sequence(cursor, what)
    raise cursor.refusal(f"{what} has the unknown type {kind}")


def _sequence(cursor: _Cursor, what: str) -> object:
    kind = cursor.u32(f"the type of {what}")
    if kind == ARRAY:
        raise cursor.refusal(f"{what} is an array of arrays, which no model uses and which is not read")
    if kind not in SMALLEST:
        raise cursor.refusal(f"{what} is an array of the unknown type {kind}")
    count = cursor.count(SMALLEST[kind], f"the length of {what}")
    if kind == STRING:
        return _Undecoded(cursor.buffer, cursor.texts(count, what), count, many=True)
    return _numbers(cursor, kind, count, what)


def _numbers(cursor: _Cursor, kind: int, count: int, what: str) -> np.ndarray:
    dtype = DTYPES.get(kind, np.dtype("u1"))
    start = cursor.skip(count * dtype.itemsize, what)
    if not count:
        return np.empty(0, bool if kind == BOOL else dtype)
    values = np.frombuffer(cursor.buffer, dtype, count, start)
    if kind != BOOL:
        return values
    if values.max() > 1:
        raise cursor.refusal(f"{what} holds the byte {values.max()} where a bool is 0 or 1")
    return values.view(bool)


def alignment_of(path: Path, metadata: Mapping[str, object]) -> int:
    value = metadata.get("general.alignment", ALIGNMENT)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise UserError(f"{path}: general.alignment is not an integer")
    if value < 1 or int(value).bit_count() != 1:
        raise UserError(f"{path}: general.alignment is {value}, which is not a power of two")
    return int(value)


class _Entry(NamedTuple):
    type: str
    shape: tuple[int, ...]
    offset: int


def _table(cursor: _Cursor, count: int) -> dict[str, _Entry]:
    table: dict[str, _Entry] = {}
    for _ in range(count):
        name = cursor.name("a tensor's name")
        what = f"the tensor {quoted(name)}"
        if name in table:
            raise cursor.refusal(f"{what} is there twice")
        rank = cursor.u32(f"the rank of {what}")
        if rank > MAX_DIMS:
            raise cursor.refusal(f"{what} has {rank} dimensions; GGUF allows {MAX_DIMS}")
        sizes = [cursor.u64(f"the shape of {what}") for _ in range(rank)]
        table[name] = _Entry(
            _type_name(cursor, what), tuple(reversed(sizes)), cursor.u64(f"the offset of {what}")
        )
    return table


def _type_name(cursor: _Cursor, what: str) -> str:
    number = cursor.u32(f"the type of {what}")
    if number in NAMES:
        return NAMES[number]
    named = (
        f"the type {UNSUPPORTED[number]}, which"
        if number in UNSUPPORTED
        else f"the unknown type {number}, which"
    )
    raise cursor.refusal(f"{what} has {named} is not supported; supported are {', '.join(TYPES)}")


def _tensors(cursor: _Cursor, table: dict[str, _Entry], alignment: int) -> dict[str, Packed]:
    base = -(-cursor.position // alignment) * alignment
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, Packed] = {}
    everything = np.frombuffer(cursor.buffer, np.uint8)
    for name, (type, shape, offset) in table.items():
        what = f"the tensor {quoted(name)}"
        kind = TYPES[type]
        if (shape[-1] if shape else 1) % kind.block:
            raise cursor.refusal(f"{what} has rows of {shape[-1]}, not whole blocks of {kind.block} ({type})")
        if math.prod(max(size, 1) for size in shape) > cursor.size * kind.block:
            raise cursor.refusal(f"{what} of shape {'x'.join(map(str, shape))} is larger than the file")
        if offset % alignment:
            raise cursor.refusal(f"{what} starts at {offset}, not a multiple of the alignment {alignment}")
        stored = packed_shape(type, shape)
        start, nbytes = base + offset, math.prod(stored)
        if start + nbytes > cursor.size:
            raise cursor.refusal(
                f"{what} ends at byte {start + nbytes} but the file has {cursor.size}; "
                "the file is cut short or damaged, get it again"
            )
        if nbytes:
            spans.append((start, start + nbytes, name))
        tensors[name] = Packed(type, shape, everything[start : start + nbytes].reshape(stored))
    _check_apart(cursor, spans)
    return tensors


def _check_apart(cursor: _Cursor, spans: list[tuple[int, int, str]]) -> None:
    spans.sort()
    for (_, stop, first), (start, _, second) in pairwise(spans):
        if start < stop:
            raise cursor.refusal(f"the tensors {quoted(first)} and {quoted(second)} overlap")


def _split_number(file: File, key: str, default: int) -> int:
    value = file.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise UserError(f"{file.path}: {key} is not a whole number")
    return max(int(value), default)


def _join(opened: File, count: int) -> File:
    """All parts of a split model as one file; the first part's metadata holds for all."""
    match = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})\.gguf", opened.path.name)
    if not match or int(match[3]) != count:
        raise UserError(
            f"{opened.path}: is one part of {count}, to be named like NAME-00001-of-{count:05}.gguf"
        )
    tensors: dict[str, Packed] = {}
    first = opened
    for number in range(count):
        path = opened.path.with_name(f"{match[1]}-{number + 1:05}-of-{match[3]}.gguf")
        part = opened if path.name == opened.path.name else _read_one(path)
        if (_split_number(part, "split.count", 0), _split_number(part, "split.no", 0)) != (count, number):
            raise UserError(f"{path}: does not say that it is part {number + 1} of {count}")
        for name in part.tensors:
            if name in tensors:
                raise UserError(f"{path}: the tensor {quoted(name)} is in an earlier part too")
        tensors.update(part.tensors)
        first = part if number == 0 else first
    expected = _split_number(first, "split.tensors.count", 0)
    if expected and expected != len(tensors):
        raise UserError(f"{first.path}: the parts hold {len(tensors)} tensors, {expected} announced")
    metadata = Metadata(first.metadata)
    for key in ("split.count", "split.no", "split.tensors.count"):
        metadata.pop(key, None)
    return File(first.version, metadata, tensors, first.path)
