"""What a row of a table learns during training: its norm, its neighbours and its rotation at each step.

seen = Watched({"king": 17, "queen": 40}, words)
for step in training:
    ...
    seen.record(step, model.embedding.weight)    # any table [v d]: numpy's or torch's
print(seen)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cutaway.embedding.neighbours import nearest
from cutaway.embedding.vectors import Near


@dataclass(frozen=True)
class Moment:
    """A row at a step: its norm, its cosine with the row as first seen, and its neighbours."""

    step: int
    norm: float
    cosine: float
    near: tuple[Near, ...]


@dataclass
class Watched:
    """``rows`` are those to watch, by name; ``words`` names every row; ``moments`` is what was seen."""

    rows: Mapping[str, int]
    words: Sequence[str]
    count: int = 5
    moments: dict[str, list[Moment]] = field(default_factory=dict)
    first: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def record(self, step: int, table: Any) -> None:
        """Look at a table [v d] as it is now."""
        rows = _numbers(table)
        ids, cosines = nearest(rows, np.array(list(self.rows.values()), np.int64), self.count)
        for name, near, how in zip(self.rows, ids.tolist(), cosines.tolist(), strict=True):
            row = rows[self.rows[name]].astype(np.float64)
            first, norm = self.first.setdefault(name, row.copy()), float(np.linalg.norm(row))
            size = norm * float(np.linalg.norm(first))
            same = float(row @ first) / size if size else 0.0
            found = tuple(Near(self.words[int(id)], cosine) for id, cosine in zip(near, how, strict=True))
            self.moments.setdefault(name, []).append(Moment(step, norm, same, found))

    def __str__(self) -> str:
        return "\n".join(line for name in self.moments for line in [name, *map(_line, self.moments[name])])


def _line(moment: Moment) -> str:
    near = ", ".join(f"{word} {cosine:.2f}" for word, cosine in moment.near)
    return f"  {moment.step:>10}  norm {moment.norm:.2f}  cosine with its start {moment.cosine:+.2f}  {near}"


def _numbers(table: Any) -> np.ndarray:
    """A copy of a table as numpy, so that what it learns later does not change it."""
    if hasattr(table, "detach"):
        table = table.detach().float().cpu().numpy()
    return np.array(table, np.float32)
