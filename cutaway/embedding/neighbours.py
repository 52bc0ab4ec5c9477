"""Nearest neighbours in a table of vectors, by cosine: which rows point the same way. Imports no torch.

Every row is compared, in blocks, so that the answer is exact and memory small. Past a million rows an index
(HNSW, 1603.09320, of the library usearch) may answer instead, asked for by name: it may miss a neighbour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from cutaway.extras import library

if TYPE_CHECKING:
    from cutaway.shapes import Float, Int

ROWS = 1 << 14  # rows of the table that are compared at once,
NUMBERS = 8 << 20  # and their numbers: 32 MB
MANY = 1_000_000  # rows from which an index is worth building


@runtime_checkable
class Table(Protocol):
    """An array float32 [v d], or what unpacks its rows when they are asked for."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any: ...


def nearest(table: Table, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [m n] and cosines [m n] of the ``count`` nearest to each of ``rows`` [m] in ``table`` [v d].

    A row is not its own neighbour; a row of zeros has cosine 0 with every other. n is count, or all others if
    fewer.
    """
    return search(table, table[rows], count, exclude=np.asarray(rows)[:, None])


def search(
    table: Table,
    queries: Float[np.ndarray, "m d"],
    count: int,
    exclude: Int[np.ndarray, "m x"] | None = None,
) -> tuple[Int[np.ndarray, "m n"], Float[np.ndarray, "m n"]]:
    """The ids and cosines of the ``count`` rows nearest to each query, best first.

    Rows to ``exclude`` are left out; equal cosines are in the order of ids. n is count, or what there is.
    """
    if exclude is None:
        exclude = np.zeros((len(queries), 0), np.int64)
    wanted = unit(queries)
    most = max(0, min(count, len(table) - (exclude.shape[1])))
    ids, best = np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
    at_once = max(1, min(ROWS, NUMBERS // queries.shape[1]))
    for first in range(0, len(table), at_once):
        rows = np.asarray(table[first : first + at_once], np.float32)
        lengths = np.sqrt(np.einsum("rd,rd->r", rows, rows))
        cosines = wanted @ rows.T / np.where(lengths == 0, 1, lengths)
        query, at = np.nonzero((exclude >= first) & (exclude < first + cosines.shape[1]))
        cosines[query, exclude[query, at] - first] = -np.inf
        found, values = _best(cosines, most)
        ids, best = np.hstack([ids, found + first]), np.hstack([best, values])
        chosen, best = _best(best, most)
        ids = np.take_along_axis(ids, chosen, axis=1)
    return ids, best


def _best(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and values of each row's largest numbers, largest first."""
    count = min(count, scores.shape[1])
    if 0 < count < scores.shape[1] // 4:
        # Ties with the last one are taken too, so that position decides among equals, and not the sort.
        least = np.partition(scores, -count, axis=1)[:, -count:].min(axis=1)
        columns = np.flatnonzero((scores >= least[:, None]).any(axis=0))
    else:
        columns = np.arange(scores.shape[1])
    order = np.argsort(-scores[:, columns], axis=1, kind="stable")[:, :count]
    at = columns[order]
    return at, np.take_along_axis(scores, at, axis=1)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of norm 1, float32; a row of zeros stays one."""
    rows = rows.astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths == 0, 1, lengths)


class Index:
    """An approximate index over a table's rows by cosine: fast where all rows are too many."""

    def __init__(self, table: Float[np.ndarray, "v d"]) -> None:
        usearch = library("an approximate index", "usearch.index")
        self._index: Any = usearch.Index(ndim=table.shape[1], metric="cos", dtype="f32")
        for first in range(0, len(table), ROWS):
            part = unit(table[first : first + ROWS])
            # By one thread: with several, usearch 2.26 now and then leaves a row that no search finds.
            self._index.add(np.arange(first, first + len(part), dtype=np.uint64), part, threads=1)

    def search(
        self, queries: Float[np.ndarray, "m d"], count: int
    ) -> tuple[Int[np.ndarray, "m n"], Float[np.ndarray, "m n"]]:
        """The ids and cosines of about the ``count`` nearest rows, best first."""
        found = self._index.search(unit(queries), count)
        shape = (len(queries), -1)
        keys, distances = np.asarray(found.keys).reshape(shape), np.asarray(found.distances).reshape(shape)
        return keys.astype(np.int64), (1 - distances).astype(np.float32)
