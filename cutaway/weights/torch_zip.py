"""Read `torch.save` files as data: a zip of a pickle and of each tensor's numbers (PyTorch 1.6 on).

A pickle is a program that builds objects and may call any function. Here its opcodes are read one by one, and
those that build dicts, lists, texts, numbers and tensors are followed. No name is imported and nothing is
called: a name or an opcode besides these is a UserError. Tensors are views of the mapped file.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.gguf import looks_like
from cutaway.store.files import read_errors

MAX_PICKLE = 1 << 22  # bytes
MAX_ZIPPED = 1 << 16  # members
# Raised by zipfile for a damaged archive, and by pickletools for a damaged pickle.
DAMAGED = (ValueError, LookupError, EOFError, RuntimeError, OverflowError, UnicodeError, zipfile.BadZipFile)
STORAGES = {
    "torch HalfStorage": "<f2",
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
    "torch LongStorage": "<i8",
    "torch BFloat16Storage": "<u2",
}
BFLOAT16 = "torch BFloat16Storage"
TENSOR, ORDERED = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"


class _Name(NamedTuple):
    """A name that the pickle mentions; it is never imported."""

    text: str


class _Storage(NamedTuple):
    """The numbers of a tensor: their type, the member of the zip, how many."""

    type: str
    key: str
    count: int


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUTS, _GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}


def read_torch_zip(path: str | Path) -> Any:
    """The object of a file, made of dicts, lists, tuples, texts, numbers and float arrays."""
    path = Path(path)
    with read_errors(path), path.open("rb") as file:
        head = file.read(1024)
    if not head.startswith(b"PK\x03\x04"):
        raise UserError(f"{path} is not what torch.save writes, but {looks_like(head)}")
    try:
        with zipfile.ZipFile(path) as archive:
            return _Archive(path, archive).value()
    except (*DAMAGED, OSError) as error:  # the system's own, of offsets that no file has
        why = " ".join(str(error).split())[:120]
        raise UserError(f"{path} is a damaged PyTorch file, or none ({why})") from None


class _Archive:
    """A zip as torch.save writes it: NAME/data.pkl, NAME/data/0, NAME/data/1, ..., not compressed."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self.members = {one.filename: one for one in archive.infolist()[:MAX_ZIPPED]}
        pickles = [name for name in self.members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"{path} is a zip archive without the one data.pkl that torch.save writes")
        self.folder = pickles[0].removesuffix("data.pkl")
        for one in self.members.values():
            if one.compress_type != zipfile.ZIP_STORED or one.compress_size != one.file_size:
                raise UserError(
                    f"{path}: its part {quoted(one.filename)} is compressed, which torch.save never does"
                )
        order = self.members.get(f"{self.folder}byteorder")
        if order is not None and order.file_size == 3:  # "big", not "little"
            raise UserError(f"{path} was written on a big-endian machine, whose numbers are not read")
        if self.members[pickles[0]].file_size > MAX_PICKLE:
            raise UserError(
                f"{path}: its pickle is above {MAX_PICKLE >> 20} MB: this holds more than tensors"
            )
        self.pickle = archive.read(pickles[0])
        self.mapped = np.memmap(path, np.uint8, "r")

    def value(self) -> Any:
        """The object that the pickle describes."""
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(self.pickle):
            if opcode.name == "STOP":
                (value,) = stack
                return value
            self._follow(opcode.name, argument, stack, memo)
        raise UserError(f"{self.path}: its pickle has no end")

    def _follow(self, name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
        """One opcode: it changes the stack and the memo, and nothing else."""
        if name in ("PROTO", "FRAME"):
            return
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _PUTS or name == "MEMOIZE":
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in _GETS:
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE" or name in _TUPLES:
            some = _taken(stack) if name == "TUPLE" else _last(stack, _TUPLES[name])
            stack.append(tuple(some))
        elif name in ("APPEND", "APPENDS"):
            some = _taken(stack) if name == "APPENDS" else _last(stack, 1)
            self._is(stack[-1], list).extend(some)
        elif name in ("SETITEM", "SETITEMS"):
            some = _taken(stack) if name == "SETITEMS" else _last(stack, 2)
            self._is(stack[-1], dict).update(self._pairs(some))
        elif name == "GLOBAL":
            stack.append(self._name(argument))
        elif name == "STACK_GLOBAL":
            stack.append(self._name(" ".join(map(str, _last(stack, 2)))))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            of, arguments = _last(stack, 2)
            stack.append(self._made(of, arguments))
        else:
            raise UserError(f"{self.path}: its pickle does more than hold tensors ({name}): it is not read")

    def _is(self, value: Any, kind: type) -> Any:
        if type(value) is not kind:
            raise UserError(
                f"{self.path}: its pickle adds to a {type(value).__name__} as to a {kind.__name__}"
            )
        return value

    def _pairs(self, some: list[Any]) -> dict[Any, Any]:
        keys = some[::2]
        if len(some) % 2 or not all(isinstance(key, str | int) for key in keys):
            raise UserError(f"{self.path}: its pickle has a dict whose names are neither texts nor numbers")
        return dict(zip(keys, some[1::2], strict=True))

    def _name(self, text: str) -> _Name:
        if text not in (TENSOR, ORDERED, *STORAGES):
            raise UserError(
                f"{self.path}: its pickle would run {quoted(text.replace(' ', '.'))}: only tensors are read"
            )
        return _Name(text)

    def _storage(self, given: Any) -> _Storage:
        match given:
            case ("storage", _Name(type), str(key), str(), int(count)) if type in STORAGES:
                return _Storage(type, key, count)
        raise UserError(f"{self.path}: its pickle refers to something that is no storage of numbers")

    def _made(self, of: Any, arguments: Any) -> Any:
        """A tensor as an array, a view of the file; an empty dict for an OrderedDict."""
        match (of, arguments):
            case (_Name(text), ()) if text == ORDERED:
                return {}
            case (_Name(text), (_Storage() as storage, int(at), tuple(shape), tuple(strides), *_)) if (
                text == TENSOR
            ):
                return self._tensor(storage, at, shape, strides)
        raise UserError(f"{self.path}: its pickle calls something that makes no tensor: it is not run")

    def _tensor(
        self, storage: _Storage, at: int, shape: tuple[Any, ...], strides: tuple[Any, ...]
    ) -> np.ndarray:
        """The numbers of a tensor whose rows follow one another."""
        if not all(type(one) is int and 0 <= one < 1 << 31 for one in (*shape, *strides)):
            raise UserError(f"{self.path}: a tensor's shape is not of whole numbers")
        rows = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        if len(shape) != len(strides) or any(
            s != r for n, s, r in zip(shape, strides, rows, strict=True) if n > 1
        ):
            raise UserError(f"{self.path}: a tensor's rows do not follow one another in the file")
        member = self.members.get(f"{self.folder}data/{storage.key}")
        dtype = np.dtype(STORAGES[storage.type])
        count = math.prod(shape)
        if (
            member is None
            or member.file_size != storage.count * dtype.itemsize
            or not 0 <= at <= storage.count - count
        ):
            raise UserError(f"{self.path}: the numbers of a tensor of {list(shape)} are not all in the file")
        begin = self._begin(member) + at * dtype.itemsize
        flat = self.mapped[begin : begin + count * dtype.itemsize]
        if flat.size != count * dtype.itemsize:
            raise UserError(f"{self.path}: the file ends before its tensors do")
        array = flat.view(dtype).reshape(shape)
        if storage.type == BFLOAT16:
            array = (array.astype(np.uint32) << 16).view(np.float32)
        return array

    def _begin(self, member: zipfile.ZipInfo) -> int:
        """The offset of a member's bytes: after its own header, which repeats its name."""
        header = bytes(self.mapped[member.header_offset : member.header_offset + 30])
        if header[:4] != b"PK\x03\x04" or len(header) < 30:
            raise UserError(f"{self.path}: its part {quoted(member.filename)} has no header")
        return (
            member.header_offset
            + 30
            + int.from_bytes(header[26:28], "little")
            + int.from_bytes(header[28:30], "little")
        )


def _last(stack: list[Any], count: int) -> list[Any]:
    """The last entries of the stack, taken off it."""
    some = stack[len(stack) - count :]
    if len(some) != count or any(one is _MARK for one in some):
        raise ValueError("its pickle takes more than it has")
    del stack[-count:]
    return some


def _taken(stack: list[Any]) -> list[Any]:
    """What follows the last mark, taken off the stack with the mark."""
    at = max((i for i, one in enumerate(stack) if one is _MARK), default=-1)
    if at < 0:
        raise ValueError("its pickle takes more than it has")
    some = stack[at + 1 :]
    del stack[at:]
    return some
