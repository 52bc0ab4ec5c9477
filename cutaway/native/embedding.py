"""Word vectors in the core (native/embedding/): counting a corpus, word2vec and GloVe.

Their references are embedding/corpus.py, word2vec.py and glove.py.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, fields

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.native.library import check, function

LONGEST = 1 << 12  # bytes of a word
TOO_LONG, UNREADABLE, MEMORY = 2, 3, -1

POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
KINDS = {"skipgram": 0, "cbow": 1, "fasttext": 2}
LANES = 16  # floats: rows are padded to a multiple of them, and begin on a cache line
BYTES_PER_PAIR = 48  # of the hash table, half full, and of the copy that is sorted


def complain(status: int, where: int) -> None:
    """Raise what a status of the core says; nothing for 0."""
    if status == TOO_LONG:
        raise UserError(f"the word that begins at byte {where} has more than {LONGEST} bytes: is this text?")
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


class _Task(ctypes.Structure):
    """native/embedding/word2vec.cpp's Task, field by field."""

    _fields_ = (
        *((name, POINTER) for name in ("input", "output")),
        *((name, LONG) for name in ("stride", "kind", "window", "negative", "vocabulary")),
        *((name, POINTER) for name in ("keep", "chance", "other")),
        *((name, POINTER) for name in ("path_ends", "path_nodes", "path_labels")),
        *((name, POINTER) for name in ("piece_ends", "piece_rows")),
        *((name, LONG) for name in ("longest_path", "words")),
        *((name, ctypes.c_float) for name in ("rate", "least_rate")),
        ("seed", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class Draws:
    """Tables for subsampling and negative samples, for a vocabulary of v words.

    ``keep`` [v]: the chance that a word is not skipped; ``chance``, ``other`` [v]: the alias table of the
    noise; ``path_*``: each word's way through the Huffman tree; ``piece_*``: the rows that make each word
    (fastText). ``*_ends`` [v] say where each word's part of the flat array ends.
    """

    keep: np.ndarray
    chance: np.ndarray
    other: np.ndarray
    path_ends: np.ndarray
    path_nodes: np.ndarray
    path_labels: np.ndarray
    piece_ends: np.ndarray
    piece_rows: np.ndarray

    def check(self, inputs: int, outputs: int) -> None:
        """Refuse arrays that C++ would read wrongly or past their ends."""
        size = len(self.keep)
        for name in ("keep", "chance", "path_labels"):
            check(name, getattr(self, name), np.float32)
        for name in ("other", "path_nodes", "piece_rows"):
            check(name, getattr(self, name), np.int32)
        for name in ("path_ends", "piece_ends"):
            check(name, getattr(self, name), np.int64)
        _within("other", self.other, min(size, outputs))
        _within("path_nodes", self.path_nodes, outputs)
        _within("piece_rows", self.piece_rows, inputs)
        _flat("path", self.path_ends, self.path_nodes)
        _flat("piece", self.piece_ends, self.piece_rows)
        if len(self.chance) != len(self.other) or len(self.path_labels) != len(self.path_nodes):
            raise UserError("the tables of draws differ in length")


def _within(name: str, rows: np.ndarray, count: int) -> None:
    if len(rows) and not 0 <= rows.min() <= rows.max() < count:
        raise UserError(f"{name} names rows past the {count} that there are")


def _flat(name: str, ends: np.ndarray, flat: np.ndarray) -> None:
    if len(ends) and (ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] != len(flat)):
        raise UserError(f"{name}_ends does not divide its {len(flat)} entries")


def table(rows: int, dim: int) -> np.ndarray:
    """float32 zeros [rows dim], the rows padded and aligned as the kernels read them."""
    stride = -(-dim // LANES) * LANES
    memory = np.zeros(rows * stride + LANES, np.float32)
    begin = -memory.ctypes.data % 64 // 4
    return memory[begin : begin + rows * stride].reshape(rows, stride)[:, :dim]


def whole(rows: np.ndarray) -> np.ndarray:
    """A table of `table` with its padding: [rows stride]."""
    return np.lib.stride_tricks.as_strided(rows, (len(rows), rows.strides[0] // 4))


class Learner:
    """A corpus, a dictionary and two tables, ready for `learn`. Everything is checked here, once."""

    def __init__(
        self,
        words: Dictionary,
        input: np.ndarray,
        output: np.ndarray,
        draws: Draws,
        *,
        kind: str,
        window: int,
        negative: int,
        total: int,
        rate: float,
        least_rate: float,
        seed: int,
    ) -> None:
        size = words.size
        if kind not in KINDS or window < 1 or negative < 0 or total < 1 or size < 1:
            raise UserError(f"{kind}, window {window}, {negative} negatives, {total} words cannot be learned")
        stride = input.strides[0] // 4
        for name, rows in (("input", input), ("output", output)):
            padded(name, rows, stride)
        draws.check(len(input), len(output))
        needed = (negative > 0, negative == 0, kind == "fasttext")
        tables = (draws.chance, draws.path_ends, draws.piece_ends)
        if any(need and len(one) != size for need, one in zip(needed, tables, strict=True)) or (
            len(draws.keep) != size
            or (negative > 0 and len(output) < size)
            or (kind != "fasttext" and len(input) < size)
        ):
            raise UserError(f"the tables do not fit a vocabulary of {size} words")
        lengths = np.diff(draws.path_ends, prepend=0)
        self._words, self._keeps = words, (input, output, draws)
        self._task = _Task(
            *(input.ctypes.data, output.ctypes.data, stride, KINDS[kind], window, negative, size),
            *(getattr(draws, field.name).ctypes.data for field in fields(draws)),
            *(int(lengths.max(initial=0)), total, rate, least_rate, seed),
        )

    def learn(self, file: int, epoch: int, first: int, last: int, done: int, threads: int) -> int:
        """Learn from the pieces [first, last) of an open file; returns ``done`` and the words read."""
        count, where = LONG(done), LONG(0)
        call = function(
            "cutaway_word2vec", POINTER, POINTER, INT, LONG, LONG, LONG, INT, POINTER, POINTER, result=INT
        )
        task = ctypes.byref(self._task)
        counted, place = ctypes.byref(count), ctypes.byref(where)
        complain(
            call(task, self._words.handle, file, epoch, first, last, threads, counted, place), where.value
        )
        return count.value


def padded(name: str, rows: np.ndarray, stride: int) -> None:
    """Refuse a table whose rows are not as `table` makes them."""
    if rows.dtype != np.float32 or rows.ndim != 2 or not rows.flags.writeable:
        raise UserError(f"{name} must be a writable float32 table")
    if rows.strides != (stride * 4, 4) or stride % LANES or stride < rows.shape[1] or rows.base is None:
        raise UserError(f"{name} is not padded for the core: make it with native.embedding.table")


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
