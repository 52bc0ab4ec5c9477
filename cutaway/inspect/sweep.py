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
from typing import Any

from cutaway.inspect.edits import Add, Given, Scale
from cutaway.inspect.instrumented import BY_HEAD, SQUARE, Instrumented
from cutaway.inspect.sweep_cells import WHOLE, Cell, Seen, Setting, Sweep
from cutaway.inspect.sweep_runtime import RuntimeSweep


def sweep_of(engine: Instrumented, texts: Sequence[Sequence[int]], edit: Given = ()) -> Sweep:
    """The fastest sweep of an engine; ``edit`` acts on every pass, before what a cell sets."""
    if engine.name != "runtime":
        from cutaway.inspect.sweep_pytorch import PyTorchSweep  # imports torch

        return PyTorchSweep(engine, texts, edit)
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
