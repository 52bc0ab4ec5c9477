"""Which tokens a direction of the residual stream promotes, and which it suppresses, by the output head."""

from __future__ import annotations

import numpy as np

from cutaway.inspect.arrays import largest
from cutaway.inspect.attribution import normed_directions, tiles
from cutaway.inspect.instrumented import Instrumented, head_table


def promoted(
    engine: Instrumented, directions: np.ndarray, vocabulary: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ids [n count] whose logits directions [n d] raise most, and those that they lower most.

    The final norm's size is left out. The head is unpacked some rows at a time, once.
    """
    table, read = head_table(engine), normed_directions(engine, directions).astype(np.float32)
    parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[], []]
    for rows in tiles(table.shape, vocabulary):
        logits = read @ table[rows].T
        for own in parts:
            at = largest(logits, count)
            own.append((at + rows.start, np.take_along_axis(logits, at, axis=1)))
            np.negative(logits, out=logits)
    up, down = (_merged(own, count) for own in parts)
    return up, down


def _merged(parts: list[tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    """The ids of the largest of several tiles' largest."""
    ids, scores = (np.concatenate(columns, axis=1) for columns in zip(*parts, strict=True))
    return np.take_along_axis(ids, largest(scores, count), axis=1)
