"""The few functions of arrays that studies share."""

from __future__ import annotations

import numpy as np

LARGEST = 1e18  # a number of a file: squares of larger ones overflow float32

GROUP = 64  # numbers, far apart, of which the largest is looked at first


def softmax(x: np.ndarray) -> np.ndarray:
    """The probabilities of logits [... v]."""
    exps = np.exp(x - x.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)


def log_softmax(x: np.ndarray) -> np.ndarray:
    """The logarithms of the probabilities of logits [... v]."""
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def largest(x: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` largest of each row [... n], largest first, and equals in their order."""
    rows = x.reshape(-1, x.shape[-1])
    count, groups = min(count, rows.shape[1]), rows.shape[1] // GROUP
    if count < groups:  # of many: those in the groups with the largest maxima, and what is in no group
        best = _unordered(rows[:, : groups * GROUP].reshape(len(rows), GROUP, groups).max(1), count)
        inside = (best[:, None] + groups * np.arange(GROUP)[:, None]).reshape(len(rows), -1)
        left = np.broadcast_to(
            np.arange(groups * GROUP, rows.shape[1]), (len(rows), rows.shape[1] - groups * GROUP)
        )
        at = np.concatenate([inside, left], axis=1) if left.size else inside
        at = np.take_along_axis(at, _unordered(np.take_along_axis(rows, at, axis=1), count), axis=1)
    else:
        at = _unordered(rows, count)
    at = np.sort(at, axis=1)
    order = np.argsort(-np.take_along_axis(rows, at, axis=1), axis=1, kind="stable")
    return np.take_along_axis(at, order, axis=1).reshape(*x.shape[:-1], count)


def _unordered(rows: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` largest of each row."""
    if count == rows.shape[1]:
        return np.broadcast_to(np.arange(count), rows.shape)
    return np.argpartition(rows, -count, axis=1)[:, -count:]
