"""Sweeps of the PyTorch model: whole texts in batches, a cell a row, whose settings are listeners."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cutaway.hooks import Listener
from cutaway.inspect.edits import Given
from cutaway.inspect.sweep_cells import WHOLE, Cell, Seen, Setting

TOKENS = 2048  # of the texts of one batch


class PyTorchSweep:
    """Cells of texts, read by the PyTorch model."""

    def __init__(self, of: Any, texts: Sequence[Sequence[int]], edit: Given = ()) -> None:
        self.of, self.texts, self.edit = of, texts, edit

    def batches(self, cells: Sequence[Cell]) -> list[list[int]]:
        """Cells of texts of one length: roundings are not those of a padded batch."""
        by_length: dict[int, list[int]] = {}
        for i, cell in enumerate(cells):
            by_length.setdefault(len(self.texts[cell.text]), []).append(i)
        return [
            some[start : start + size]
            for length, some in by_length.items()
            for size in [max(1, min(WHOLE, TOKENS // length))]
            for start in range(0, len(some), size)
        ]

    def run(
        self,
        cells: Sequence[Cell],
        names: Sequence[str] = (),
        position: int | None = None,
        tokens: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Seen]]:
        texts = [self.texts[cell.text] for cell in cells]
        seen = self.of.run(texts, [*names, "logits"], (self.edit, _listeners(cells)))
        rows = range(len(cells))
        values = [{name: _array(seen[name][i]) for name in names} for i in rows]
        logits = seen["logits"] if tokens is None else seen["logits"][..., list(tokens)]
        for i in rows:
            yield i, Seen(_array(logits[i] if position is None else logits[i, position]), values[i])


def _listeners(cells: Sequence[Cell]) -> dict[str, Listener]:
    """Row i of the batch gets what cell i sets."""
    by_name: dict[str, list[tuple[int, Setting]]] = {}
    for i, cell in enumerate(cells):
        for one in cell.settings:
            by_name.setdefault(one.name, []).append((i, one))
    return {name: partial(_set, settings) for name, settings in by_name.items()}


def _set(settings: Sequence[tuple[int, Setting]], value: Tensor) -> Tensor:
    changed = value.clone()
    for i, one in settings:
        row = changed[i] if one.head is None else changed[i, one.head]
        row[..., list(one.positions), :] = torch.as_tensor(one.rows).to(value)
    return changed


def _array(value: Tensor) -> Any:
    return value.detach().cpu().float().numpy()
