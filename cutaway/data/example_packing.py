"""Examples packed into rows of one length: best-fit decreasing, no example cut, none sees another.

A row holds whole examples side by side, the longest first into the fullest row that still has room; the two
answers of a pair are neighbours. ``pos`` starts again at each answer, ``documents`` numbers them, and what is
left of a row is padding (position -1, weight 0). Each epoch reads all rows in another order that ``seed``
decides: a batch is a function of the seed and the step, and needs no state.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cutaway.data.conversations import Example, Item, Labelled, Pair
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


MISMATCHED = "mismatched_"  # begins the names of what ``extra`` holds of a row's mismatched answers
FIELDS = "ids", "targets", "pos", "documents", "loss_weights"
TRIED = 64  # answers that a prompt is tried with


@dataclass(frozen=True)
class Packed:
    """Rows of ``width`` tokens that hold these items.

    The batches of pairs have their margins in ``extra``, those of labelled answers ``labels``: [b t], of the
    n-th item at n. These have their mismatched answers there too, packed alike. ``extra`` [rows width] is
    what else is known of each row.
    """

    items: Sequence[Item]
    width: int
    seed: int
    members: list[list[int]]  # of each row, by their numbers among the items
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows an epoch has."""
        return len(self.members)

    @staticmethod
    def of(items: Sequence[Item], width: int, seed: int) -> Packed:
        """Pack them. Raises UserError for none, or for one that is longer than a row."""
        if not items:
            raise UserError("there is no example to train on")
        sizes = [size(item) for item in items]
        if max(sizes) > width:
            raise UserError(f"an example of {max(sizes) + 1} tokens does not fit a row of {width}")
        return Packed(items, width, seed, placed(sizes, width))

    def row(self, n: int) -> Batch:
        """Row n, [1 width]."""
        items = [self.items[member] for member in self.members[n]]
        row = _side_by_side([each for item in items for each in item.documents], self.width)
        extra = {name: values[n][None] for name, values in self.extra.items()}
        numbers = np.zeros((1, self.width), np.float32)
        if isinstance(items[0], Example):
            return replace(row, extra=extra)
        if isinstance(items[0], Pair):
            numbers[0, : len(items)] = [item.margin for item in items if isinstance(item, Pair)]
            return replace(row, extra=extra | {"margins": numbers}, divisor=float(len(items)))
        labelled = [item for item in items if isinstance(item, Labelled)]
        numbers[0, : len(items)] = [item.label for item in labelled]
        others = _side_by_side([item.mismatched for item in labelled if item.mismatched], self.width)
        extra |= {f"{MISMATCHED}{name}": getattr(others, name) for name in FIELDS}
        return replace(row, extra=extra | {"labels": numbers}, divisor=float(len(items)))

    def batch(self, first: int, count: int) -> Batch:
        """``count`` rows of the run from the ``first`` on."""
        found = []
        for n in range(first, first + count):
            epoch, place = divmod(n, self.rows)
            found.append(self.row(permuted(place, self.rows, number(self.seed, "order", epoch))))
        return stacked(found)


def mismatched(items: Sequence[Labelled], width: int) -> list[Labelled]:
    """Each item with the next item's answer that has another prompt, and fits a row behind its own.

    An item for which none of the next 64 does has none.
    """
    cuts = [int(item.answer.trained.argmax()) for item in items]
    found = []
    for n, (item, cut) in enumerate(zip(items, cuts, strict=True)):
        prompt, other = item.answer.cut(cut), None
        for k in ((n + step) % len(items) for step in range(1, min(TRIED, len(items)))):
            answer = items[k].answer
            same = np.array_equal(answer.ids[: cuts[k]], prompt.ids)
            if not same and cut + len(answer.ids) - cuts[k] <= width + 1:
                ids = np.concatenate((prompt.ids, answer.ids[cuts[k] :]))
                other = Example(ids, np.concatenate((prompt.trained, answer.trained[cuts[k] :])))
                break
        found.append(replace(item, mismatched=other))
    return found


def size(item: Item) -> int:
    """How many inputs an item has in its row; the last id of a document is only ever a target."""
    own = sum(len(each.ids) - 1 for each in item.documents)
    other = item.mismatched if isinstance(item, Labelled) else None
    return max(own, 0 if other is None else len(other.ids) - 1)


def _side_by_side(documents: Sequence[Example], width: int) -> Batch:
    """Documents in one row, [1 width]."""
    ids, targets = np.zeros((2, width), np.int64)
    pos = np.full(width, -1, np.int64)
    weights = np.zeros(width, np.float32)
    numbers = np.full(width, len(documents), np.int64)
    at = 0
    for document, example in enumerate(documents):
        place = slice(at, at + len(example.ids) - 1)
        ids[place], targets[place] = example.ids[:-1], example.ids[1:]
        pos[place] = np.arange(len(example.ids) - 1)
        weights[place] = example.trained[1:]
        numbers[place] = document
        at = place.stop
    return Batch(ids[None], targets[None], pos[None], numbers[None], weights[None])
