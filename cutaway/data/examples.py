"""Examples packed into rows of one length: best-fit decreasing, no example cut, none sees another.

A row holds whole examples side by side, the longest first into the fullest row that still has room. ``pos``
starts again at each example, ``documents`` numbers them, and what is left of a row is padding (position -1,
weight 0). Each epoch reads all rows in another order that ``seed`` decides: a batch is a function of the seed
and the step, and needs no state.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cutaway.data.conversations import Example
from cutaway.data.packing import Batch, number, permuted, stacked
from cutaway.errors import UserError


def placed(sizes: Sequence[int], width: int) -> list[list[int]]:
    """Which things of these sizes, none above ``width``, share a row, by best-fit decreasing."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # what is left of each row, and its number, in order
    for n in sorted(range(len(sizes)), key=lambda n: (-sizes[n], n)):
        at = bisect_left(room, (sizes[n], -1))
        if at == len(room):
            rows.append([n])
            insort(room, (width - sizes[n], len(rows) - 1))
        else:
            left, row = room.pop(at)
            rows[row].append(n)
            insort(room, (left - sizes[n], row))
    return rows


@dataclass(frozen=True)
class Packed:
    """Rows of ``width`` tokens that hold these examples."""

    examples: Sequence[Example]
    width: int
    seed: int
    members: list[list[int]]  # of each row, by their numbers among the examples

    @property
    def rows(self) -> int:
        """How many rows an epoch has."""
        return len(self.members)

    @staticmethod
    def of(examples: Sequence[Example], width: int, seed: int) -> Packed:
        """Pack them. Raises UserError for none, or for one that is longer than a row."""
        if not examples:
            raise UserError("there is no example to train on")
        sizes = [len(example.ids) - 1 for example in examples]  # the last id is only ever a target
        if max(sizes) > width:
            raise UserError(f"an example of {max(sizes) + 1} tokens does not fit a row of {width}")
        return Packed(examples, width, seed, placed(sizes, width))

    def row(self, n: int) -> Batch:
        """Row n, [1 width]."""
        ids, targets = np.zeros((2, self.width), np.int64)
        pos = np.full(self.width, -1, np.int64)
        weights = np.zeros(self.width, np.float32)
        documents = np.full(self.width, len(self.members[n]), np.int64)
        at = 0
        for document, member in enumerate(self.members[n]):
            example = self.examples[member]
            place = slice(at, at + len(example.ids) - 1)
            ids[place], targets[place] = example.ids[:-1], example.ids[1:]
            pos[place] = np.arange(len(example.ids) - 1)
            weights[place] = example.trained[1:]
            documents[place] = document
            at = place.stop
        return Batch(ids[None], targets[None], pos[None], documents[None], weights[None])

    def batch(self, first: int, count: int) -> Batch:
        """``count`` rows of the run from the ``first`` on."""
        found = []
        for n in range(first, first + count):
            epoch, place = divmod(n, self.rows)
            found.append(self.row(permuted(place, self.rows, number(self.seed, "order", epoch))))
        return stacked(found)
