"""Which attention backend each layer uses (``inspect/backends.py``) as a terminal shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cutaway.commands.cells import ACCENT, QUIET, WIDTH

if TYPE_CHECKING:
    from cutaway.inspect.backends import Layer, Pass


def show(passes: tuple[Pass, ...], model: str, console: Console) -> None:
    """Each forward pass: layers with the same backend together, the backend and why, then the others."""
    width = min(console.width, WIDTH)
    for one in passes:
        console.print(Text(_heading(one, model), "bold"), width=width)
        for first, last, layer in one.runs():
            named = f"layer {first}" if first == last else f"layers {first} to {last}"
            console.print(Padding(_table(named, layer), (0, 0, 0, 2)), width=width)
        console.print()
    naive = "`cutaway explain` itself keeps every attention map, which only the naive backend computes."
    console.print(Text(naive, QUIET), width=width)


def _heading(one: Pass, model: str) -> str:
    count = "1 token" if one.tokens == 1 else f"{one.tokens:,} tokens"
    if not one.after:
        return f"{model}, prefill of {count}"
    if one.tokens == 1:
        return f"decode: 1 token after {one.after:,}"
    return f"prefill, last chunk: {count} after {one.after:,}"


def _table(named: str, layer: Layer) -> Table:
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for choice in filter(None, (layer.backend, layer.form)):
        rows.add_row(
            named if choice is layer.backend else "", Text(choice.backend, f"bold {ACCENT}"), choice.why
        )
        for other, why in choice.refused.items():
            rows.add_row("", Text(f"not {other}", QUIET), Text(why, QUIET))
    return rows
