"""Word vectors by prediction (native/embedding/word2vec.cpp; reference: embedding/word2vec.py)."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from cutaway.errors import UserError
from cutaway.native.corpus import INT, LONG, POINTER, Dictionary, complain
from cutaway.native.library import check, function

KINDS = {"skipgram": 0, "cbow": 1, "fasttext": 2}
LANES = 16  # floats: rows are padded to a multiple of them, and begin on a cache line


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
    """What decides which words are learned from and against what, for a vocabulary of v words.

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
            input.ctypes.data,
            output.ctypes.data,
            stride,
            KINDS[kind],
            window,
            negative,
            size,
            draws.keep.ctypes.data,
            draws.chance.ctypes.data,
            draws.other.ctypes.data,
            draws.path_ends.ctypes.data,
            draws.path_nodes.ctypes.data,
            draws.path_labels.ctypes.data,
            draws.piece_ends.ctypes.data,
            draws.piece_rows.ctypes.data,
            int(lengths.max(initial=0)),
            total,
            rate,
            least_rate,
            seed,
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
        raise UserError(f"{name} is not padded for the core: make it with native.word2vec.table")
