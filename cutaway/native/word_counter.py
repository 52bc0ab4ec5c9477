"""Counting distinct words (native/tokenizer/word_counter.cpp; reference: tokenizer/word_counter.py)."""

import ctypes
from typing import Any

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.native import library
from cutaway.native.library import check, function
from cutaway.native.scan import SCANNERS

_POINTER, _INT64, _INT32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class WordCounter:
    """Distinct words, as UTF-8, with their counts."""

    def __init__(self) -> None:
        self._pointer = function("cutaway_word_counter_new", result=_POINTER)()
        if self._pointer is None:
            raise _no_memory()

    def __del__(self) -> None:
        if getattr(self, "_pointer", None) is not None:
            function("cutaway_word_counter_free", _POINTER)(self._pointer)

    def add(self, scanner: str, text: bytes, threads: int | None = None) -> None:
        """Count the words of a text in UTF-8, as a scanner cuts it, on several threads."""
        call = function(
            "cutaway_word_counter_add", _POINTER, _INT32, ctypes.c_char_p, _INT64, _INT32, result=_INT32
        )
        count = library.threads() if threads is None else threads
        if call(self._pointer, SCANNERS.index(scanner), text, len(text), count):
            raise _no_memory()

    def put(self, text: np.ndarray, offsets: np.ndarray, counts: np.ndarray) -> None:
        """Add words (uint8, int64 [n + 1], int64 [n]), none of them empty, and each with 1 or more."""
        check("text", text, np.uint8)
        check("offsets", offsets, np.int64)
        check("counts", counts, np.int64)
        if len(offsets) != len(counts) + 1 or offsets[0] != 0 or offsets[-1] != len(text):
            raise UserError("offsets do not fit the words: they run from 0 to the bytes of text, one a word.")
        if len(counts) and (np.diff(offsets).min() < 1 or counts.min() < 1):
            raise UserError("a word is empty, or its count is below 1.")
        call = function("cutaway_word_counter_put", *[_POINTER] * 4, _INT64, result=_INT32)
        if call(self._pointer, text.ctypes.data, offsets.ctypes.data, counts.ctypes.data, len(counts)):
            raise _no_memory()

    def prune(self, limit: int) -> int:
        """Past `limit` words, drop the rarest so that half are left; the highest count dropped, or 0."""
        dropped = function("cutaway_word_counter_prune", _POINTER, _INT64, result=_INT64)(
            self._pointer, limit
        )
        if dropped < 0:
            raise _no_memory()
        return dropped

    def words(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All words (uint8), where each begins (int64 [n + 1]), its count (int64 [n]); unsorted."""
        words, size = self._size()
        text, offsets = np.empty(size, np.uint8), np.empty(words + 1, np.int64)
        counts = np.empty(words, np.int64)
        call = function("cutaway_word_counter_words", *[_POINTER] * 4)
        call(self._pointer, text.ctypes.data, offsets.ctypes.data, counts.ctypes.data)
        return text, offsets, counts

    def __len__(self) -> int:
        return self._size()[0]

    def _size(self) -> tuple[int, int]:
        words, size = ctypes.c_int64(), ctypes.c_int64()
        call: Any = function("cutaway_word_counter_size", *[_POINTER] * 3, result=_INT32)
        if call(self._pointer, ctypes.byref(words), ctypes.byref(size)):
            raise _no_memory()
        return words.value, size.value


def safe_cut(scanner: str, text: bytes, most: int) -> int:
    """The last byte, `most` at most, at which a text can be cut in two without its words changing; else 0."""
    if not 0 < most < len(text):
        return 0
    call = function("cutaway_split_point", _INT32, ctypes.c_char_p, _INT64, result=_INT64)
    return call(SCANNERS.index(scanner), text, most)


def utf8_until(data: bytes) -> int:
    """The place of the first byte that is not UTF-8, or of a character cut off at the end; else the size."""
    return function("cutaway_utf8_until", ctypes.c_char_p, _INT64, result=_INT64)(data, len(data))


def _no_memory() -> OperationalError:
    return OperationalError(
        "there is not enough memory to count this many distinct words: lower their limit."
    )
