"""Encoding and decoding in the core (native/tokenizer/bpe.cpp); the reference is cutaway/tokenizer/bpe.py.

Texts and ids pass as plain bytes and ctypes arrays: a short text is encoded without numpy being loaded.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from cutaway.errors import UserError
from cutaway.native import library
from cutaway.native.library import function
from cutaway.native.scan import SCANNERS

if TYPE_CHECKING:
    import numpy as np

CACHE_BYTES = 128 << 20  # at most, for the pieces that a vocabulary has seen
HEADER = 2560  # bytes; no compiled vocabulary is shorter
SURE = 1 << 20  # ids that there is room for whatever comes

_i32, _i64, _u32, _u64, _p = ctypes.c_int32, ctypes.c_int64, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
_MORE = ctypes.CFUNCTYPE(_p, _i64)
_NO_MORE = _MORE()


@dataclass(frozen=True)
class Source:
    """What a vocabulary is compiled from.

    `texts` are the symbols' bytes, all different and none empty, and `ids` what each is written as (-1:
    not at
    all). Either `ranks`, one a symbol (-1: nothing merges to it), or `pairs`, (left, right, made) by
    number in
    order of rank. `tokens` are the bytes of every id (empty: not decoded here). `byte_ids` are 256 ids,
    -1 for none; `byte_symbols` the symbols of the 256 bytes where text is merged from bytes, else empty.
    """

    texts: Sequence[bytes]
    ids: Sequence[int]
    ranks: Sequence[int] | None
    pairs: Sequence[int] | None
    unused: bytes
    whole: bool
    byte_ids: Sequence[int]
    byte_symbols: Sequence[int]
    unknown: int
    fuse: bool
    tokens: Sequence[bytes]


def compile(source: Source) -> bytes | None:
    """The vocabulary laid out for the core; None where it is too large for the layout."""
    begin = function(
        "cutaway_vocabulary_compile",
        *(_u32, _p, _p, _p, _p, _p, _u64, _p, _u32, _u32, _p, _p, _i32, _u32, _u32, _p, _p, _p),
        result=_p,
    )
    take = function("cutaway_vocabulary_take", _p, _p)
    pairs = None if source.pairs is None else array("I", source.pairs)
    ranks = None if source.ranks is None else array("i", source.ranks)
    held = (
        b"".join(source.texts),
        _starts(source.texts),
        array("i", source.ids),
        ranks,
        pairs,
        source.unused,
        array("i", source.byte_ids),
        array("I", source.byte_symbols or [0] * 256),
        b"".join(source.tokens),
        _starts(source.tokens),
    )
    text, starts, ids, ranks_, pairs_, unused, byte_ids, byte_symbols, token_text, token_starts = map(
        _at, held
    )
    size = _u64()
    made = begin(
        *(len(source.texts), text, starts, ids, ranks_, pairs_, len(pairs or ()) // 3, unused),
        *(bool(source.byte_symbols), source.whole, byte_ids, byte_symbols, source.unknown, source.fuse),
        *(len(source.tokens), token_text, token_starts, ctypes.byref(size)),
    )
    if not made:
        return None
    out = ctypes.create_string_buffer(size.value)
    take(made, out)
    return out.raw


class Core:
    """A compiled vocabulary, open in the core, over a buffer (bytes, or a file that is mapped).

    Raises ValueError where the buffer is none, or damaged.
    """

    def __init__(self, data: Any, start: int = 0) -> None:
        held = memoryview(data)[start:]
        address = _address(held)
        opened = function("cutaway_tokenizer_open", _p, _u64, _u64, result=_p)(
            address, len(held), CACHE_BYTES
        )
        if not opened:
            raise ValueError("not a compiled vocabulary")
        self._held = held
        self._opened = opened
        self._close = function("cutaway_tokenizer_close", _p)
        self._encode = function(
            "cutaway_tokenizer_encode", *(_p, _i32, _p, _p, _i64, _p, _i64, _MORE, _p, _i32), result=_i64
        )
        self._pieces = function("cutaway_tokenizer_pieces", _p, _p, _p, _i64, _p, result=_i64)
        self._decoded = function("cutaway_tokenizer_decoded", _p, _p, _i64, result=_i64)
        self._decode = function("cutaway_tokenizer_decode", _p, _p, _i64, _p, _i64)
        self._cached = function("cutaway_tokenizer_cached", _p, result=_i64)

    def __del__(self) -> None:
        if hasattr(self, "_close"):
            self._close(self._opened)

    def short(self, scanner: str, text: bytes) -> list[int] | None:
        """The ids of one short text; None where the vocabulary lacks a byte of it."""
        size = len(text)
        out, count = (_i32 * size)(), _i64()
        size = self._encode(
            *(self._opened, SCANNERS.index(scanner), (ctypes.c_char_p * 1)(text), (_i64 * 1)(size), 1),
            *(out, size, _NO_MORE, ctypes.byref(count), 1),
        )
        return None if size < 0 else out[:size]

    def encode(self, scanner: str, text: str, threads: int = 1) -> np.ndarray | None:
        """The ids of a text, int32 [n]; None where the vocabulary lacks a byte of it."""
        found = self.batch(scanner, [text], threads)
        return None if found is None else found[0]

    def batch(self, scanner: str, texts: list[str], threads: int = 1) -> tuple[np.ndarray, np.ndarray] | None:
        """The ids of texts, int32 [n], and where each begins and ends, int64 [texts + 1]; None as above.

        The list must not change meanwhile. Raises UnicodeEncodeError where a text has no UTF-8.
        """
        import numpy as np

        places, sizes = _utf8(texts)
        size = int(sizes.sum())
        # Memory that is asked for and not used costs as well: few long texts have more ids than this.
        out = np.empty(min(size, max(size // 2, SURE)), np.int32)

        def more(count: int) -> int:
            out.resize(count, refcheck=False)
            return out.ctypes.data

        offsets = np.zeros(len(texts) + 1, np.int64)
        size = self._encode(
            *(self._opened, SCANNERS.index(scanner), places.ctypes.data, sizes.ctypes.data, len(texts)),
            *(out.ctypes.data, len(out), _MORE(more), offsets[1:].ctypes.data, threads),
        )
        if size < 0:
            return None
        out.resize(size, refcheck=False)
        np.cumsum(offsets, out=offsets)
        return out, offsets

    def count(self, scanner: str, text: str, threads: int = 1) -> int | None:
        """How many ids a text has; None as above."""
        places, sizes = _utf8([text])
        count = _i64()
        size = self._encode(
            *(self._opened, SCANNERS.index(scanner), places.ctypes.data, sizes.ctypes.data, 1),
            *(None, 0, _NO_MORE, ctypes.byref(count), threads),
        )
        return None if size < 0 else size

    def pieces(self, pieces: Sequence[bytes]) -> list[int] | None:
        """The ids of pieces, one after the other; None as above."""
        text = b"".join(pieces)
        ends = array("q", _starts(pieces)[1:])
        out = (_i32 * len(text))()
        size = self._pieces(self._opened, text, _at(ends), len(pieces), out)
        return None if size < 0 else out[:size]

    def decode(self, ids: np.ndarray) -> bytearray | None:
        """The bytes of ids (int32); None where one is no id, or has no bytes here."""
        library.check("ids", ids, _int32())
        address = ids.ctypes.data
        size = self._decoded(self._opened, address, len(ids))
        if size < 0:
            return None
        out = bytearray(size)
        if size:
            into = (ctypes.c_char * size).from_buffer(out)
            self._decode(self._opened, address, len(ids), ctypes.byref(into), size)
        return out

    def token(self, id: int) -> bytes | None:
        """The bytes of one id; None as above."""
        ids = (_i32 * 1)(id if 0 <= id < 1 << 31 else -1)
        size = self._decoded(self._opened, ids, 1)
        if size < 0:
            return None
        out = ctypes.create_string_buffer(size)
        self._decode(self._opened, ids, 1, out, size)
        return out.raw

    def cached(self) -> int:
        """The bytes that the cache of pieces takes now."""
        return self._cached(self._opened)


def integers(ids: list[int]) -> np.ndarray | None:
    """A list of integers as int32 [n]; None where one is negative or has more than 32 bits.

    Raises TypeError where one is no integer.
    """
    import numpy as np

    out = np.empty(len(ids), np.int32)
    call, python = _integers()
    return out if call(ids, len(ids), *python, out.ctypes.data) == len(ids) else None


@cache
def _integers() -> tuple[Any, list[Any]]:
    """The core's function, called without letting go of Python's lock; int, and what it calls."""
    import sysconfig

    kind = ctypes.PYFUNCTYPE(_i64, ctypes.py_object, _i64, *(_p,) * 6)
    free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")  # where an object's head is another
    python = (
        getattr(ctypes.pythonapi, name)
        for name in ("PyList_GetItem", "PyLong_AsLong", "Py_IncRef", "Py_DecRef")
    )
    call = kind(ctypes.cast(function("cutaway_integers"), _p).value or 0)
    return call, [None if free_threaded else id(int), *(ctypes.cast(one, _p) for one in python)]


@cache
def _int32() -> Any:
    import numpy as np

    return np.int32


def _utf8(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The addresses and sizes of the UTF-8 of texts: Python's own, which it keeps while the text is there."""
    import numpy as np

    places, sizes = np.empty(len(texts), np.uintp), np.empty(len(texts), np.int64)
    call, python = _texts()
    call(texts, len(texts), *python, places.ctypes.data, sizes.ctypes.data)
    return places, sizes


@cache
def _texts() -> tuple[Any, list[Any]]:
    """The core's function, called without letting go of Python's lock, and what it calls."""
    kind = ctypes.PYFUNCTYPE(_i64, ctypes.py_object, _i64, *(_p,) * 4)
    python = (getattr(ctypes.pythonapi, name) for name in ("PyList_GetItem", "PyUnicode_AsUTF8AndSize"))
    call = kind(ctypes.cast(function("cutaway_texts"), _p).value or 0)
    return call, [ctypes.cast(one, _p) for one in python]


def _starts(texts: Sequence[bytes]) -> array[int]:
    starts = array("Q", [0])
    for text in texts:
        starts.append(starts[-1] + len(text))
    return starts


def _at(held: bytes | array[int] | None) -> Any:
    """The address of what an argument holds; the caller keeps it alive."""
    if held is None or isinstance(held, bytes):
        return held
    return held.buffer_info()[0]


def _address(data: memoryview) -> int:
    """The address of a buffer, which may be read-only."""
    if len(data) < HEADER:
        raise ValueError("not a compiled vocabulary")
    view = _Buffer()
    if ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(data), ctypes.byref(view), 0):
        raise UserError("this buffer has no address")
    address = view.buf
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))
    return address


class _Buffer(ctypes.Structure):
    """Python's Py_buffer, which is part of its stable interface."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )
