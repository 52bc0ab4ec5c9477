"""What runs in parallel (``inspect/parallel.py``) as a terminal shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cutaway.commands.cells import ACCENT, QUIET, WIDTH

ALIGNED = 96  # columns of a terminal that hold aligned tables

if TYPE_CHECKING:
    from cutaway.inspect.parallel import Layers, Machine, Pass, Step


def show(passes: tuple[Pass, ...], machine: Machine, model: str, console: Console) -> None:
    """Each pass: its steps in order, what each computes at once, and which limit it meets first."""
    width = min(console.width, WIDTH)
    for one in passes:
        console.print(Text(_heading(one, model), "bold"), width=width)
        for layers in one.layers:
            console.print(Text(f"  {_named(layers)}", QUIET), width=width)
            console.print(Padding(_table(layers.steps, machine, width), (0, 0, 0, 2)), width=width)
        console.print(Text("  after the last layer", QUIET), width=width)
        console.print(Padding(_table((one.head,), machine, width), (0, 0, 0, 2)), width=width)
        flops, moved, seconds = one.total(machine)
        rate = one.tokens * one.sequences / seconds
        console.print(
            f"  {one.waits} steps wait for one another; {flops / 1e9:,.2f} GFLOP, {moved / 1e6:,.0f} MB: at "
            f"least {1000 * seconds:,.1f} ms, at most {rate:,.0f} tokens/s.\n",
            width=width,
        )
    note = (
        f"Measured here on {machine.threads} threads: {machine.flops / 1e9:,.0f} GFLOP/s of {machine.type} "
        f"products, {machine.bandwidth / 1e9:,.1f} GB/s read. Below {machine.balance:,.1f} operations a byte "
        "memory is the limit. Layers wait for one another, and each new token for the one before it; heads, "
        "positions of a prompt, experts and texts do not."
    )
    console.print(Text(note, QUIET), width=width)


def _heading(one: Pass, model: str) -> str:
    if one.after == 0:
        return f"{model}, prefill: a prompt of {one.tokens:,} tokens at once"
    if one.sequences == 1:
        return f"decode: one token after {one.after:,}"
    return f"decode in a batch: one token of each of {one.sequences} texts after {one.after:,}"


def _named(layers: Layers) -> str:
    if layers.count == 1:
        return f"layer {layers.first}, {layers.kind}"
    return f"layers {layers.first} to {layers.last}, {layers.kind}, one after another; in each:"


def _table(steps: tuple[Step, ...], machine: Machine, width: int) -> Table:
    """The steps; where the width allows it, with the columns of the other tables."""
    aligned = width >= ALIGNED
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=QUIET)
    table.add_column("step", width=18 if aligned else None)
    table.add_column("at once", width=20 if aligned else None)
    for heading, size in (("outputs", 7), ("MFLOP", 8), ("MB", 6), ("FLOP/byte", 9), ("limit", 10)):
        table.add_column(heading, justify="right", min_width=size if aligned else None)
    for step in steps:
        limit = "arithmetic" if step.intensity > machine.balance else "memory"
        table.add_row(
            Text(step.name, ACCENT),
            step.at_once,
            f"{step.outputs:,}",
            f"{step.flops / 1e6:,.2f}",
            f"{step.bytes / 1e6:,.2f}",
            f"{step.intensity:,.1f}",
            limit,
        )
    return table
