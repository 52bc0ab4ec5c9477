"""Counting and finding a corpus's words (native/embedding/corpus.cpp; reference: embedding/corpus.py)."""

from __future__ import annotations

import ctypes

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.native.library import check, function

LONGEST = 1 << 12  # bytes of a word
TOO_LONG, UNREADABLE, MEMORY = 2, 3, -1

POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


def piece_bytes() -> int:
    """Bytes of the file in a piece, the unit that threads take."""
    return int(function("cutaway_corpus_piece", result=LONG)())


def complain(status: int, where: int) -> None:
    """Raise what a status of the core says; nothing for 0."""
    if status == TOO_LONG:
        raise UserError(f"the word that begins at byte {where} has over {LONGEST} bytes: is this text?")
    if status == UNREADABLE:
        raise OperationalError(f"the corpus could not be read at byte {where}")
    if status == MEMORY:
        raise OperationalError("there is not enough memory for this corpus's words")


class Counter:
    """Counts words, piece by piece; memory grows with the different words and with nothing else."""

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise UserError(f"{threads} threads cannot count; use at least 1")
        self._handle = function("cutaway_counter_new", INT, result=POINTER)(threads)
        if not self._handle:
            raise OperationalError("there is not enough memory to count words")

    def add(self, file: int, first: int, last: int) -> None:
        """Count the pieces [first, last) of an open file."""
        where = LONG(0)
        call = function("cutaway_counter_add", POINTER, INT, LONG, LONG, POINTER, result=INT)
        complain(call(self._handle, file, first, last, ctypes.byref(where)), where.value)

    def take(self) -> tuple[list[bytes], np.ndarray]:
        """The different words in no order, and how often each came: int64 [v]."""
        words, size = LONG(0), LONG(0)
        call = function("cutaway_counter_size", POINTER, POINTER, POINTER, result=INT)
        complain(call(self._handle, ctypes.byref(words), ctypes.byref(size)), 0)
        text = np.empty(size.value, np.uint8)
        ends, times = np.empty(words.value, np.int64), np.empty(words.value, np.int64)
        function("cutaway_counter_take", POINTER, POINTER, POINTER, POINTER)(
            self._handle, text.ctypes.data, ends.ctypes.data, times.ctypes.data
        )
        whole, stops = text.tobytes(), ends.tolist()
        return [whole[a:b] for a, b in zip([0, *stops[:-1]], stops, strict=False)], times

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        function("cutaway_counter_free", POINTER)(self._handle)
        self._handle = None


class Dictionary:
    """Finds the number of a word; made of different words in the order of their numbers."""

    def __init__(self, words: list[bytes]) -> None:
        if len(set(words)) != len(words):
            raise UserError("a dictionary's words must differ")
        text = np.frombuffer(b"".join(words) or b"\0", np.uint8)
        ends = np.cumsum([len(word) for word in words], dtype=np.int64)
        check("ends", ends, np.int64)
        call = function("cutaway_dictionary_new", POINTER, POINTER, LONG, result=POINTER)
        self.size = len(words)
        self.handle = call(text.ctypes.data, ends.ctypes.data, len(words))
        if not self.handle:
            raise OperationalError("there is not enough memory for the dictionary")

    def __enter__(self) -> Dictionary:
        return self

    def __exit__(self, *_: object) -> None:
        function("cutaway_dictionary_free", POINTER)(self.handle)
        self.handle = None
