"""The few functions of arrays that readings share."""

from __future__ import annotations

import numpy as np


def softmax(x: np.ndarray) -> np.ndarray:
    """The probabilities of logits [... v]."""
    exps = np.exp(x - x.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)


def log_softmax(x: np.ndarray) -> np.ndarray:
    """The logarithms of the probabilities of logits [... v]."""
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def largest(x: np.ndarray, count: int) -> np.ndarray:
    """Where the ``count`` largest of each row [... n] are, largest first; of equals the first comes first."""
    count = min(count, x.shape[-1])
    if count == 0 or x.size == 0:
        return np.empty((*x.shape[:-1], count), np.int64)
    rows = x.reshape(-1, x.shape[-1])
    least = np.partition(rows, -count, axis=-1)[:, -count]
    return np.stack([_row(row, low, count) for row, low in zip(rows, least, strict=True)]).reshape(
        *x.shape[:-1], count
    )


def _row(row: np.ndarray, least: np.floating, count: int) -> np.ndarray:
    at = np.flatnonzero(row >= least)
    return at[np.argsort(-row[at], kind="stable")[:count]]
