"""`cutaway attention align`: where Bahdanau's attention looks while a translator spells a word backwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cutaway import extras
from cutaway.commands import plots
from cutaway.commands.console import doing, on_screen, print_json
from cutaway.commands.options import Force, Html, Json, Svg
from cutaway.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

FAINT = 0.005  # a weight below is shown as a dot


def align(
    text: str = "letters look backwards",
    /,
    *,
    html: Html = None,
    svg: Svg = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Train a translator of 2014 in seconds, and show where it looks while it spells words backwards.

    It reads the letters of a word by one recurrent network and writes them, last one first, by another, with
    Bahdanau's attention between them. A row is a letter that it writes, a column one that it read.

    **Examples:**

    cutaway attention align

    cutaway attention align "any other words" --svg drawings

    :param text: Its words of 3 to 8 Latin letters are spelt backwards, twelve at most.
    """
    plots.check(html, svg, force)
    extras.need("attention align trains a model, which", "torch")
    from cutaway.inspect import reports
    from cutaway.inspect.how import alignment

    if not alignment.words_of(text):
        raise UserError(
            f"the text has no word of {alignment.SHORTEST} to {alignment.LONGEST} Latin letters: give one"
        )
    with doing("Training a translator"):
        found = alignment.alignments(text)
    if html is not None or svg is not None:
        plots.write_plots(reports.aligned(found), html, svg, force)
    if as_json:
        print_json(found)
    elif html is None and svg is None:
        on_screen(lambda console: _show(found, console))


def _show(found: dict[str, Any], console: Console) -> None:
    """A matrix of percentages for each word."""
    from rich.text import Text

    for one in found["words"]:
        console.print(Text.assemble((one["word"], "bold cyan"), f"  written: {one['written']}"))
        console.print(Text("   " + "".join(f"{letter:>5}" for letter in one["word"]), "bright_black"))
        for letter, weights in zip(one["written"], one["weights"], strict=True):
            row = Text(f"  {letter}")
            for weight in weights:
                cell = f"{weight:>5.0%}" if weight >= FAINT else f"{'·':>5}"
                row.append(cell, "cyan" if weight == max(weights) else "bright_black")
            console.print(row)
        console.print()
    console.print(Text(f"A row is a letter written, a column one read. Trained for {found['steps']} steps."))
