"""The GGUF container, versions 2 and 3, read and written (the GGUF specification in ggml's docs/gguf.md).

A file is a header, typed key/value metadata, a table of tensors and, after padding, their bytes. Tensors stay
packed as they are on disk and stay mapped: opening a file copies none of them. A file is data from a
stranger, so each number in it is checked against the file's size before it is believed; what opening
allocates is bounded by twice that size, plus about a kilobyte for each of at most 65,536 tensors and as many
keys.
"""

from __future__ import annotations

import codecs
import math
import mmap
import os
import re
import secrets
import stat
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np

from cutaway.errors import Failed, Refused


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
    "I8": GGMLType(24, 1, 1),
    "I16": GGMLType(25, 1, 2),
    "I32": GGMLType(26, 1, 4),
    "I64": GGMLType(27, 1, 8),
    "F64": GGMLType(28, 1, 8),
    "BF16": GGMLType(30, 1, 2),
}

# Types of other containers, in bytes a value: they can be carried, and are refused where numbers are wanted.
FOREIGN: dict[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "U16": 2,
    "U32": 4,
    "U64": 8,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "C64": 8,
}

UNSUPPORTED: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    29: "IQ1_M",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    34: "TQ1_0",
    35: "TQ2_0",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}

_NAMES = {kind.id: name for name, kind in TYPES.items()}
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_DTYPES = {number: np.dtype(name) for number, name in _NUMBERS.items()}
_IDS = {dtype: number for number, dtype in _DTYPES.items()}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SMALLEST = {_BOOL: 1, _STRING: 8} | {number: dtype.itemsize for number, dtype in _DTYPES.items()}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

MAGIC = b"GGUF"
ALIGNMENT = 32
MAX_DIMS = 4
MAX_NAMED = 1 << 16
MAX_KEY = (1 << 16) - 1
MAX_TENSOR_NAME = 63
_CHUNK = 1 << 16


def row_bytes(type: str, width: int) -> int:
    """Bytes of one row of `width` values; Refused for an unknown type or a width that is not whole blocks."""
    if type in FOREIGN:
        return width * FOREIGN[type]
    kind = TYPES.get(type)
    if kind is None:
        raise Refused(f"there is no storage type {type!r}; known are {', '.join(TYPES)}")
    if width % kind.block:
        raise Refused(f"a row of {width} values cannot be stored as {type}, whose blocks hold {kind.block}")
    return width // kind.block * kind.bytes


@dataclass(frozen=True, eq=False)
class Packed:
    """A tensor as stored: `shape` is row-major, `data` is uint8 of shape (*shape[:-1], bytes of a row)."""

    type: str
    shape: tuple[int, ...]
    data: np.ndarray

    def __post_init__(self) -> None:
        expected = packed_shape(self.type, self.shape)
        if self.data.dtype != np.uint8 or self.data.shape != expected:
            found = f"{self.data.dtype} of {self.data.shape}"
            raise Refused(
                f"a {self.type} tensor of {self.shape} is stored as uint8 of {expected}, not as {found}"
            )

    @property
    def nbytes(self) -> int:
        """Bytes on disk and in memory."""
        return self.data.nbytes

    def rows(self, index: np.ndarray | Iterable[int] | slice) -> Packed:
        """The entries `index` of the first axis, in that order and still packed; a slice copies nothing."""
        if not self.shape:
            raise Refused("a scalar has no rows to select")
        index = index if isinstance(index, (slice, np.ndarray)) else np.asarray(list(index), dtype=np.int64)
        if len(self.shape) > 1:
            data = self.data[index]
            return Packed(self.type, (data.shape[0], *self.shape[1:]), data)
        if self.type in TYPES and TYPES[self.type].block > 1:
            raise Refused(f"single values of a {self.type} vector cannot be selected: they share blocks")
        values = self.data.reshape(-1, row_bytes(self.type, 1))[index]
        return Packed(self.type, (values.shape[0],), values.reshape(-1))


@dataclass(frozen=True)
class Later:
    """A tensor to be made when the writer reaches it, so that a whole model need not be in memory at once."""

    type: str
    shape: tuple[int, ...]
    make: Callable[[], Packed]


def packed_shape(type: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the uint8 array that stores a tensor."""
    return (*shape[:-1], row_bytes(type, shape[-1] if shape else 1))


class Metadata(dict[str, object]):
    """A GGUF file's metadata: str, bool, numpy scalars of the stored width, numpy arrays, and list[str].

    Long texts and string arrays are checked when the file is opened and become Python objects when first
    asked for: a vocabulary as Python strings is several times the size of the file it came from.
    """

    def __getitem__(self, key: str) -> object:
        value = super().__getitem__(key)
        if isinstance(value, _Undecoded):
            value = value.decode()
            self[key] = value
        return value

    def get(self, key: str, default: object = None) -> object:
        if key not in self:
            return default
        return self[key]

    def pop(self, key: str, *default: object) -> object:
        if key in self:
            self[key] = self[key]
        return super().pop(key, *default)

    def values(self):
        return self._decoded().values()

    def items(self):
        return self._decoded().items()

    def copy(self) -> dict[str, object]:
        return dict(self.items())

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()

    def __eq__(self, other: object) -> bool:
        return self._decoded() == other

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
    """Open a GGUF file, with the parts beside it where it is one of several; Refused if anything is wrong."""
    file = _read_one(Path(path))
    count = _split_number(file, "split.count", 1)
    return file if count == 1 else _join(file, count)


def write(
    path: str | os.PathLike[str],
    metadata: Mapping[str, object],
    tensors: Mapping[str, Packed | Later] | Iterable[tuple[str, Packed | Later]],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a GGUF version 3 file, whole or not at all; `progress` is called with the bytes written so far.

    A Python int is stored as uint32 (int32, uint64, int64 where it does not fit), a float as float32, lists
    of them as int32 and float32 arrays; numpy scalars and arrays keep their own width. Refused for a value
    that GGUF cannot hold.
    """
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    named = list(cast(Iterable[tuple[str, Packed | Later]], pairs))
    alignment = _alignment(Path(path), metadata)
    header = b"".join(_header(metadata, named, alignment))
    with replacing(path) as out:
        done = _pour(out, header, alignment)
        for name, tensor in named:
            packed = made(name, tensor)
            done += _pour(out, np.ascontiguousarray(packed.data).reshape(-1).data, alignment)
            if progress:
                progress(done)


# ---- reading -----------------------------------------------------------------------------------------------


class _Undecoded:
    """Texts of a mapped file, known to be UTF-8, not yet Python strings."""

    def __init__(self, buffer: mmap.mmap, starts: array[int], many: bool):
        self.buffer, self.starts, self.many = buffer, starts, many

    def decode(self) -> str | list[str]:
        texts = list(self._texts())
        return texts if self.many else texts[0]

    def _texts(self) -> Iterator[str]:
        buffer, length = self.buffer, _U64.unpack_from
        for start in self.starts:
            yield str(buffer[start : start + length(buffer, start - 8)[0]], "utf-8")


class _Cursor:
    """A position in a mapped file that never leaves it."""

    def __init__(self, path: Path, buffer: mmap.mmap):
        self.path, self.buffer, self.position, self.size = path, buffer, 0, len(buffer)

    def refusal(self, why: str) -> Refused:
        return Refused(f"{self.path}: {why}")

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
        return _U32.unpack_from(self.buffer, self.skip(4, what))[0]

    def u64(self, what: str) -> int:
        return _U64.unpack_from(self.buffer, self.skip(8, what))[0]

    def count(self, smallest: int, what: str) -> int:
        """A number of things to come, of at least `smallest` bytes each."""
        count = self.u64(what)
        if count * smallest > self.left:
            raise self.refusal(f"{what} is {count}, more than the {self.left} bytes that follow could hold")
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
        starts = self.texts(1, what)
        if self.position - starts[0] > _CHUNK:
            return _Undecoded(self.buffer, starts, many=False)
        return str(self.buffer[starts[0] : self.position], "utf-8")

    def texts(self, count: int, what: str) -> array[int]:
        """Where each of `count` strings starts; all are checked to lie in the file and to be UTF-8."""
        starts = array("q", [0]) * count
        buffer, size, position, unpack = self.buffer, self.size, self.position, _U64.unpack_from
        run = position
        try:
            for number in range(count):
                length = unpack(buffer, position)[0]
                start = position + 8
                if length > size - start:
                    raise self.refusal(
                        f"{what} has a string (number {number}) that runs past the end of the file"
                    )
                if length > 127:
                    _check_utf8(buffer, run, position)
                    _check_utf8(buffer, start, start + length)
                    run = start + length
                starts[number] = start
                position = start + length
            _check_utf8(buffer, run, position)
        except struct.error:
            raise self.refusal(f"{what} is cut short: it announced {count} strings") from None
        except UnicodeDecodeError:
            raise self.refusal(f"{what} is not UTF-8 text") from None
        self.position = position
        return starts


def _check_utf8(buffer: mmap.mmap, start: int, stop: int) -> None:
    """Raise UnicodeDecodeError unless the bytes are UTF-8; strings may be in it together with their lengths.

    A length below 128 is eight bytes of ASCII, which ends any sequence that the string before it left
    unfinished: a run of short strings is valid as a whole only if each of them is.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(start, stop, _CHUNK):
        decoder.decode(buffer[at : min(at + _CHUNK, stop)])
    decoder.decode(b"", final=True)


def mapped(path: Path) -> mmap.mmap:
    """A regular, non-empty file mapped read-only; Refused if it is not one."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise Refused(
                f"{path}: is {'a folder' if stat.S_ISDIR(status.st_mode) else 'not a regular file'}"
            )
        if not status.st_size:
            raise Refused(f"{path}: is empty; get it again")
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise Refused(f"{path}: there is no such file") from None
    except OSError as error:
        raise Refused(f"{path}: cannot be opened ({error.strerror})") from None


def quoted(name: str) -> str:
    """A name from a file as it may be shown in a one-line message."""
    return ascii(name if len(name) <= 80 else name[:60] + "..." + name[-10:])


def looks_like(head: bytes) -> str:
    """What the first kilobyte of a file suggests that it is, as a phrase for an error message."""
    if head.startswith(b"GGUF"):
        return "a GGUF file"
    if head.startswith(b"PK\x03\x04"):
        torch = b"data.pkl" in head
        return "a PyTorch checkpoint (a pickle in a zip), which is never opened" if torch else "a zip archive"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "a Python pickle (an old PyTorch checkpoint?), which is never opened"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself: fetch it with `git lfs pull`"
    if re.match(rb"\s*<(!doctype|html|head|\?xml)", head, re.IGNORECASE):
        return "an HTML page, as a failed download leaves behind"
    if len(head) > 8 and _U64.unpack_from(head)[0] <= 100_000_000 and head[8:9] == b"{":
        return "a safetensors file"
    if head[:4] in (b"lmgg", b"fmgg", b"tjgg", b"algg", b"ggml", b"ggjt", b"ggla"):
        return "a model of llama.cpp's formats before GGUF: convert it again from its source"
    for magic, name in _MAGICS.items():
        if head.startswith(magic):
            return name
    if re.match(rb"\s*[{\[]", head):
        return "JSON text"
    if head and not head.strip(b"\0"):
        return "nothing but zeros, as an unfinished download"
    return f"an unknown format (it begins with the bytes {head[:8].hex(' ')})"


_MAGICS = {
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstandard archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a numpy array",
    b"\x7fELF": "a program",
    b"%PDF": "a PDF",
}


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
    alignment = _alignment(path, metadata)
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
        raise cursor.refusal(
            f"has GGUF version {version}; versions 2 and 3 are read, convert the model again"
        )
    return version


def _value(cursor: _Cursor, kind: int, what: str) -> object:
    if kind == _STRING:
        return cursor.text(what)
    if kind == _BOOL or kind in _DTYPES:
        return (
            _numbers(cursor, kind, 1, what)[0].item() if kind == _BOOL else _numbers(cursor, kind, 1, what)[0]
        )
    if kind == _ARRAY:
        return _sequence(cursor, what)
    raise cursor.refusal(f"{what} has the unknown type {kind}")


def _sequence(cursor: _Cursor, what: str) -> object:
    kind = cursor.u32(f"the type of {what}")
    if kind == _ARRAY:
        raise cursor.refusal(f"{what} is an array of arrays, which no model uses and which is not read")
    if kind not in _SMALLEST:
        raise cursor.refusal(f"{what} is an array of the unknown type {kind}")
    count = cursor.count(_SMALLEST[kind], f"the length of {what}")
    if kind == _STRING:
        return _Undecoded(cursor.buffer, cursor.texts(count, what), many=True)
    return _numbers(cursor, kind, count, what)


def _numbers(cursor: _Cursor, kind: int, count: int, what: str) -> np.ndarray:
    dtype = _DTYPES.get(kind, np.dtype("u1"))
    start = cursor.skip(count * dtype.itemsize, what)
    if not count:
        return np.empty(0, bool if kind == _BOOL else dtype)
    values = np.frombuffer(cursor.buffer, dtype, count, start)
    if kind != _BOOL:
        return values
    if values.max() > 1:
        raise cursor.refusal(f"{what} holds the byte {values.max()} where a bool is 0 or 1")
    return values.view(bool)


def _alignment(path: Path, metadata: Mapping[str, object]) -> int:
    value = metadata.get("general.alignment", ALIGNMENT)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise Refused(f"{path}: general.alignment is not an integer")
    if value < 1 or int(value).bit_count() != 1:
        raise Refused(f"{path}: general.alignment is {value}, which is not a power of two")
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
    if number in _NAMES:
        return _NAMES[number]
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
            raise cursor.refusal(
                f"{what} has rows of {shape[-1]} values, not whole blocks of {kind.block} ({type})"
            )
        if math.prod(max(size, 1) for size in shape) > cursor.size * kind.block:
            raise cursor.refusal(f"{what} of shape {_dims(shape)} is larger than the file")
        if offset % alignment:
            raise cursor.refusal(
                f"{what} starts at offset {offset}, not a multiple of the alignment {alignment}"
            )
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


def _dims(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


# ---- files in several parts --------------------------------------------------------------------------------


def _split_number(file: File, key: str, default: int) -> int:
    value = file.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise Refused(f"{file.path}: {key} is not a whole number")
    return max(int(value), default)


def _join(opened: File, count: int) -> File:
    """All parts of a split model as one file; the first part's metadata holds for all."""
    match = re.fullmatch(r"(.+)-(\d{5})-of-(\d{5})\.gguf", opened.path.name)
    if not match or int(match[3]) != count:
        raise Refused(
            f"{opened.path}: is one part of {count}, which must be named like NAME-00001-of-{count:05}.gguf"
        )
    tensors: dict[str, Packed] = {}
    first = opened
    for number in range(count):
        path = opened.path.with_name(f"{match[1]}-{number + 1:05}-of-{match[3]}.gguf")
        part = opened if path.name == opened.path.name else _read_one(path)
        if (_split_number(part, "split.count", 0), _split_number(part, "split.no", 0)) != (count, number):
            raise Refused(f"{path}: does not say that it is part {number + 1} of {count}")
        for name in part.tensors:
            if name in tensors:
                raise Refused(f"{path}: the tensor {quoted(name)} is in an earlier part too")
        tensors.update(part.tensors)
        first = part if number == 0 else first
    expected = _split_number(first, "split.tensors.count", 0)
    if expected and expected != len(tensors):
        raise Refused(f"{first.path}: the parts hold {len(tensors)} tensors where {expected} were announced")
    metadata = Metadata(first.metadata)
    for key in ("split.count", "split.no", "split.tensors.count"):
        metadata.pop(key, None)
    return File(first.version, metadata, tensors, first.path)


# ---- writing -----------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write that takes `path`'s place when all is on disk, and vanishes if anything goes wrong."""
    target = Path(path)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with open(beside, "xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(beside, target)
        _sync_folder(target.parent)
    except FileNotFoundError:
        raise Refused(f"{target}: cannot be written, because its folder does not exist") from None
    except OSError as error:
        raise Failed(f"{target}: could not be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def made(name: str, tensor: Packed | Later) -> Packed:
    """The tensor itself; Refused if what was made is not what was announced."""
    if isinstance(tensor, Packed):
        return tensor
    packed = tensor.make()
    if (packed.type, packed.shape) != (tensor.type, tensor.shape):
        raise Refused(
            f"the tensor {quoted(name)} was announced as {tensor.type} {tensor.shape} but is {packed.type} "
            f"{packed.shape}"
        )
    return packed


def _pour(out: IO[bytes], data: bytes | memoryview, alignment: int) -> int:
    """Write `data` and zeros up to the alignment; returns the bytes written."""
    padding = -len(data) % alignment
    out.write(data)
    out.write(bytes(padding))
    return len(data) + padding


def _header(
    metadata: Mapping[str, object], tensors: list[tuple[str, Packed | Later]], alignment: int
) -> Iterator[bytes]:
    yield MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        if len(key.encode()) > MAX_KEY:
            raise Refused(f"the metadata key {quoted(key)} is longer than GGUF's {MAX_KEY} bytes")
        yield _pack_text(key, key)
        yield from _pack(key, value)
    offset, seen = 0, set()
    for name, tensor in tensors:
        _check_tensor(name, tensor, seen)
        seen.add(name)
        yield _pack_text(name, name) + _U32.pack(len(tensor.shape))
        yield struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        yield struct.pack("<IQ", TYPES[tensor.type].id, offset)
        nbytes = math.prod(packed_shape(tensor.type, tensor.shape))
        offset += nbytes + -nbytes % alignment


def _check_tensor(name: str, tensor: Packed | Later, seen: set[str]) -> None:
    if name in seen:
        raise Refused(f"the tensor {quoted(name)} was given twice")
    if len(name.encode()) > MAX_TENSOR_NAME:
        raise Refused(
            f"the tensor name {quoted(name)} is longer than the {MAX_TENSOR_NAME} bytes other engines read"
        )
    if tensor.type not in TYPES:
        raise Refused(f"the tensor {quoted(name)} is {tensor.type}, which GGUF has no type for")
    if len(tensor.shape) > MAX_DIMS:
        raise Refused(f"the tensor {quoted(name)} has {len(tensor.shape)} dimensions; GGUF allows {MAX_DIMS}")


def _pack_text(key: str, text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise Refused(f"{quoted(key)} holds text that is not valid Unicode") from None
    return _U64.pack(len(data)) + data


def _pack(key: str, value: object) -> Iterator[bytes]:
    if isinstance(value, str):
        yield _U32.pack(_STRING) + _pack_text(key, value)
    elif isinstance(value, (list, tuple, np.ndarray)):
        yield from _pack_sequence(key, value)
    else:
        number = _number(key, value)
        yield _U32.pack(_type_id(key, number.dtype)) + number.tobytes()


def _pack_sequence(key: str, values: list[object] | tuple[object, ...] | np.ndarray) -> Iterator[bytes]:
    if isinstance(values, np.ndarray) and values.dtype.kind in "OUS":
        values = values.tolist()
    if not isinstance(values, np.ndarray) and all(isinstance(value, str) for value in values):
        yield struct.pack("<IIQ", _ARRAY, _STRING, len(values))
        yield from (_pack_text(key, str(value)) for value in values)
        return
    numbers = values if isinstance(values, np.ndarray) else _number_array(key, values)
    if numbers.ndim != 1:
        raise Refused(
            f"the metadata value of {quoted(key)} has {numbers.ndim} dimensions; GGUF arrays have one"
        )
    yield struct.pack("<IIQ", _ARRAY, _type_id(key, numbers.dtype), len(numbers))
    yield numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()


def _type_id(key: str, dtype: np.dtype) -> int:
    if dtype == np.bool_:
        return _BOOL
    number = _IDS.get(dtype.newbyteorder("<"))
    if number is None:
        raise Refused(f"the metadata value of {quoted(key)} has the type {dtype}, which GGUF cannot hold")
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
    raise Refused(f"the metadata value of {quoted(key)} is a {type(value).__name__}, which GGUF cannot hold")


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
    raise Refused(f"the metadata value of {quoted(key)} is a list of {names}; GGUF arrays hold one type")


def _fitting(key: str, low: int, high: int, choices: tuple[str, ...]) -> str:
    for choice in choices:
        limits = np.iinfo(choice)
        if limits.min <= low and high <= limits.max:
            return choice
    raise Refused(f"the metadata value of {quoted(key)} is an integer beyond 64 bits")


def _float32(key: str, value: object) -> np.ndarray:
    wide = np.array(value, np.float64)
    with np.errstate(over="ignore"):
        narrow = wide.astype("<f4")
    if not np.array_equal(np.isfinite(wide), np.isfinite(narrow)):
        raise Refused(f"the metadata value of {quoted(key)} is beyond float32; give it as numpy.float64")
    return narrow
