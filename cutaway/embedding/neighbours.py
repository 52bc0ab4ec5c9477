"""Nearest neighbours in a table of vectors, by cosine: which rows point the same way. Imports no torch."""

import numpy as np

ROWS = 1 << 14  # rows of the table that are compared at once


def nearest(table: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of ``rows`` [m], the ids [m n] and cosines [m n] of its ``count`` nearest in ``table`` [v d],
    best first.

    A row is not its own neighbour; a row of zeros has cosine 0 with every other. n is count, or all others if
    fewer.
    """
    count = min(count, len(table) - 1)
    wanted = _unit(table[rows])
    cosines = np.concatenate([_unit(table[i : i + ROWS]) @ wanted.T for i in range(0, len(table), ROWS)]).T
    cosines[np.arange(len(rows)), rows] = -np.inf
    best = np.argpartition(-cosines, max(count - 1, 0), axis=1)[:, :count]
    found = np.take_along_axis(cosines, best, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(found, order, axis=1)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths == 0, 1, lengths)
