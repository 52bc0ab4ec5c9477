"""Which way each layer computes (``inspect/paths.py``) as a terminal shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cutaway.commands.explanation_text import ACCENT, QUIET, WIDTH

if TYPE_CHECKING:
    from cutaway.attention.backends import Choice
    from cutaway.inspect.paths import Layer, Reading


def show(readings: tuple[Reading, ...], model: str, console: Console) -> None:
    """Each reading: layers that go the same way together, the way with its reason, then the others."""
    width = min(console.width, WIDTH)
    for reading in readings:
        console.print(Text(_heading(reading, model), "bold"), width=width)
        for first, last, layer in reading.runs():
            named = f"layer {first}" if first == last else f"layers {first} to {last}"
            console.print(Padding(_way(named, layer), (0, 0, 0, 2)), width=width)
        console.print()
    told = "Reading with `cutaway explain` itself watches every pattern, which only the naive path has."
    console.print(Text(told, QUIET), width=width)


def _heading(reading: Reading, model: str) -> str:
    counted = "1 token" if reading.tokens == 1 else f"{reading.tokens:,} tokens"
    if not reading.after:
        return f"{model} reads {counted} of the prompt"
    if reading.tokens == 1:
        return f"then one token after {reading.after:,}, a decoding step"
    return f"then the prompt's last piece, {counted} after {reading.after:,}"


def _way(named: str, layer: Layer) -> Table:
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for choice in (layer.path, layer.form):
        if choice is not None:
            _add(rows, named if choice is layer.path else "", choice)
    return rows


def _add(rows: Table, named: str, choice: Choice) -> None:
    rows.add_row(named, Text(choice.path, f"bold {ACCENT}"), choice.why)
    for other, why in choice.refused.items():
        rows.add_row("", Text(f"not {other}", QUIET), Text(why, QUIET))
