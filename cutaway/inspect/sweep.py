"""Many forward passes over a few texts, each with some values set: what patching and ablation studies run.

    sweep = sweep_of(engine, [ids])
    cells = [Cell(0, (Setting("blocks.3.attention.z", rows[head], (5,), head),)) for head in range(9)]
    for batch in sweep.batches(cells):
        for i, seen in sweep.run([cells[at] for at in batch], position=-1): ...   # seen.logits: float32 [v]

A cell is a text and the values that it has otherwise. Before its first changed position and below its first
changed layer a cell is the text itself, so the runtime reads it from there alone: after the text's keys and
values, with the text's own residual stream as the input of that layer, and many cells in one step. Each cell
has the bits of being read whole and alone (``WholeTexts``, which tests hold it to).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from cutaway.inspect.edits import Add, Given, Scale
from cutaway.inspect.instrumented import BY_HEAD, SQUARE, Instrumented, Values

WHOLE = 32  # whole texts at once


class Setting(NamedTuple):
    """A value that is set at ``positions``: ``rows`` [p n] of one head, or [p ...] of the value as a whole.

    Of an attention pattern each row holds the weights on the text up to its position, and zeros.
    """

    name: str
    rows: np.ndarray
    positions: Sequence[int]
    head: int | None = None

    @property
    def layer(self) -> int:
        return 0 if self.name == "embed" else int(self.name.split(".")[1])

    @property
    def what(self) -> str:
        return self.name if self.name == "embed" else self.name.split(".", 2)[2]


class Cell(NamedTuple):
    """The number of a text, and what it has otherwise."""

    text: int
    settings: Sequence[Setting]

    @property
    def first(self) -> int:
        """The first position at which it differs from its text."""
        return min(min(one.positions) for one in self.settings)

    @property
    def layer(self) -> int:
        """The first layer at which it differs from its text."""
        return min(one.layer for one in self.settings)


class Seen(NamedTuple):
    """Of a cell: its logits, [v] at one position or [t v], and its values by name."""

    logits: np.ndarray
    values: Values


@runtime_checkable
class Sweep(Protocol):
    """Texts under a subject's edits, and cells of them."""

    def batches(self, cells: Sequence[Cell]) -> list[list[int]]:
        """The cells as lists of their numbers, each of which ``run`` reads together."""
        ...

    def run(
        self,
        cells: Sequence[Cell],
        names: Sequence[str] = (),
        position: int | None = None,
        tokens: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Seen]]:
        """Each cell's number and what is seen of it, in any order. Logits are those at a ``position`` of
        ``tokens``; None is all.
        """
        ...


def sweep_of(engine: Instrumented, texts: Sequence[Sequence[int]], edit: Given = ()) -> Sweep:
    """The fastest sweep of an engine; ``edit`` acts on every pass, before what a cell sets."""
    if engine.name != "runtime":
        from cutaway.inspect.sweep_pytorch import PyTorchSweep  # imports torch

        return PyTorchSweep(engine, texts, edit)
    from cutaway.inspect.sweep_runtime import RuntimeSweep  # imports this module

    runs: Any = engine
    fast = hasattr(runs.engine, "last_layers")
    return RuntimeSweep(runs, texts, edit) if fast else WholeTexts(engine, texts, edit)


class WholeTexts:
    """The reference implementation, on any engine: each cell read whole, its settings as edits."""

    def __init__(self, engine: Instrumented, texts: Sequence[Sequence[int]], edit: Given = ()) -> None:
        self.engine, self.texts, self.edit = engine, texts, edit

    def batches(self, cells: Sequence[Cell]) -> list[list[int]]:
        return [list(range(len(cells)))[start : start + WHOLE] for start in range(0, len(cells), WHOLE)]

    def run(
        self,
        cells: Sequence[Cell],
        names: Sequence[str] = (),
        position: int | None = None,
        tokens: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Seen]]:
        for i, cell in enumerate(cells):
            ids, edits = self.texts[cell.text], (self.edit, self._edits(cell))
            at = None if position is None else [position % len(ids)]
            (found,) = self.engine.values([ids], [*names, "logits"], [edits], logits_at=at)
            logits = found.pop("logits")
            logits = logits if tokens is None else logits[:, list(tokens)]
            yield i, Seen(logits if position is None else logits[0], found)

    def _edits(self, cell: Cell) -> list[Any]:
        return [edit for one in cell.settings for edit in self._setting(one)]

    def _setting(self, one: Setting) -> Iterator[Any]:
        """A setting as edits: nothing is left of a row, and the new one is added."""
        heads = (
            self.engine.shapes()[one.name][0] if one.what.rpartition(".")[2] in (*BY_HEAD, *SQUARE) else None
        )
        for head in [one.head] if one.head is not None or heads is None else range(heads):
            rows = one.rows if one.head is not None or heads is None else one.rows[head]
            for row, position in zip(rows, one.positions, strict=True):
                where: dict[str, Any] = {"name": one.name, "head": head, "positions": [position]}
                yield Scale(**where, strength=0.0)
                yield Add(**where, vector=row.tolist())
