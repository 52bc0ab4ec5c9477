"""Counting co-occurrences and fitting (native/embedding/glove.cpp; reference: embedding/glove.py)."""

from __future__ import annotations

import ctypes

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.native.corpus import INT, LONG, POINTER, Dictionary, complain
from cutaway.native.library import check, function
from cutaway.native.word2vec import padded

BYTES_PER_PAIR = 48  # of the hash table, half full, and of the copy that is sorted


class Cooccurrences:
    """Counts pairs of words in memory; `take` empties it."""

    def __init__(self, words: Dictionary, window: int, threads: int) -> None:
        if window < 1 or threads < 1:
            raise UserError(f"a window of {window} on {threads} threads cannot be counted")
        self._words, self._threads = words, threads
        self._handle = function("cutaway_cooccurrence_new", LONG, INT, result=POINTER)(window, threads)
        if not self._handle:
            raise OperationalError("there is not enough memory to count pairs of words")

    def add(self, file: int, first: int, last: int) -> None:
        """Count in the pieces [first, last) of an open file."""
        where = LONG(0)
        call = function("cutaway_cooccurrence_add", POINTER, POINTER, INT, LONG, LONG, POINTER, result=INT)
        status = call(self._handle, self._words.handle, file, first, last, ctypes.byref(where))
        complain(status, where.value)

    def nbytes(self) -> int:
        """About how much memory the pairs take."""
        size = function("cutaway_cooccurrence_size", POINTER, INT, result=LONG)
        return BYTES_PER_PAIR * sum(size(self._handle, worker) for worker in range(self._threads))

    def take(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each worker's sorted keys (uint64, smaller word above) and weights (float64), then forgotten."""
        return [self._take(worker) for worker in range(self._threads)]

    def _take(self, worker: int) -> tuple[np.ndarray, np.ndarray]:
        count = function("cutaway_cooccurrence_size", POINTER, INT, result=LONG)(self._handle, worker)
        keys, weights = np.empty(count, np.uint64), np.empty(count, np.float64)
        call = function("cutaway_cooccurrence_take", POINTER, INT, POINTER, POINTER, result=INT)
        complain(call(self._handle, worker, keys.ctypes.data, weights.ctypes.data), 0)
        return keys, weights

    def __enter__(self) -> Cooccurrences:
        return self

    def __exit__(self, *_: object) -> None:
        function("cutaway_cooccurrence_free", POINTER)(self._handle)
        self._handle = None


class _Fit(ctypes.Structure):
    """native/embedding/glove.cpp's Fit, field by field."""

    _fields_ = (
        *((name, POINTER) for name in ("vectors", "contexts", "vector_squares", "context_squares")),
        *((name, POINTER) for name in ("bias", "context_bias", "bias_squares", "context_bias_squares")),
        ("stride", LONG),
        ("rate", ctypes.c_float),
        ("most", ctypes.c_float),
    )


def fit(
    tables: tuple[np.ndarray, ...],
    biases: tuple[np.ndarray, ...],
    pairs: np.ndarray,
    counts: np.ndarray,
    *,
    rate: float,
    most: float,
    threads: int,
) -> None:
    """One pass of AdaGrad over ``pairs`` (int32 [n 2]) that met ``counts`` (float32 [n]) times.

    ``tables`` are the vectors, the contexts and their squared gradients [v d], ``biases`` the same [v].
    """
    if len(tables) != 4 or len(biases) != 4:
        raise UserError("GloVe has four tables and four rows of biases")
    rows, stride = len(tables[0]), tables[0].strides[0] // 4
    for number, one in enumerate(tables):
        padded(f"table {number}", one, stride)
        if one.shape != tables[0].shape:
            raise UserError("GloVe's tables differ in shape")
    for number, one in enumerate(biases):
        check(f"bias {number}", one, np.float32, written=True)
        if one.shape != (rows,):
            raise UserError(f"bias {number} does not go with {rows} rows")
    check("pairs", pairs, np.int32)
    check("counts", counts, np.float32)
    if pairs.shape != (len(counts), 2) or (len(pairs) and not 0 <= pairs.min() <= pairs.max() < rows):
        raise UserError(f"pairs are not [{len(counts)} 2] of the {rows} rows")
    task = _Fit(*(one.ctypes.data for one in (*tables, *biases)), stride, rate, most)
    call = function("cutaway_glove", POINTER, POINTER, POINTER, LONG, INT)
    call(ctypes.byref(task), pairs.ctypes.data, counts.ctypes.data, len(counts), threads)
