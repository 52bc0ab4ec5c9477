"""Cells and tables of a terminal: tokens drawn, bars, signed numbers, and one step of several.

Made of rich's tables, so that columns line up for every script and colours go away where they cannot be
shown. Tokens are drawn and never obeyed: spaces as ␣, control characters as escapes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cutaway.errors import escaped

if TYPE_CHECKING:
    from cutaway.inspect.explanation import Next

WIDTH = 100  # longer lines are hard to read
LONGEST = 22  # cells of a token's text in a table
EIGHTHS = " ▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"
ACCENT, QUIET, UP, DOWN = "cyan", "bright_black", "green", "red"
Step = tuple[str, str, *tuple[RenderableType, ...]]  # its name, its sentence, its numbers


def print_step(number: int, step: Step, console: Console) -> None:
    """One step: its number and name, its sentence, its numbers."""
    width = min(console.width, WIDTH)
    name, sentence, *shown = step
    console.print()
    console.print(Text.assemble((f"{number}  ", QUIET), (name, f"bold {ACCENT}")), width=width)
    console.print(Padding(Text(sentence), (0, 0, 0, 3)), width=width)
    for one in shown:
        console.print()
        console.print(Padding(_fitted(one, width - 3, console), (0, 0, 0, 3)), width=width)


def _fitted(shown: RenderableType, width: int, console: Console) -> RenderableType:
    """A table without its bars, and closer, if it is wider than so many cells."""
    if isinstance(shown, Table) and console.measure(shown).maximum > width:
        shown.padding = (0, 1, 0, 0)
        shown.columns[:] = [column for column in shown.columns if not column.highlight]
    return shown


def table(*columns: str) -> Table:
    """A bare table of these headings, without a heading row if all are empty.

    "id>" is a column of numbers, on the right and on one line; "|" one of bars, which a narrow terminal
    leaves out; any other is text, which it folds.
    """
    shown = any(column.strip(">|") for column in columns)
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=shown)
    for column in columns:
        side, fixed = "right" if column.endswith(">") else "left", column[-1:] in (">", "|")
        made.add_column(Text(column.rstrip(">|"), QUIET), justify=side, no_wrap=fixed, overflow="fold")
        made.columns[-1].highlight = column == "|"  # rich has no other mark of a column
    return made


def token(text: str, style: str = ACCENT) -> Text:
    """A token as a cell."""
    made = Text(drawn(text), style)
    made.truncate(LONGEST, overflow="ellipsis")
    return made


def drawn(text: str) -> str:
    """A token's text made visible: ␣ for a space, escapes for what is unprintable, ◌ under a lone accent."""
    out = escaped(text).replace(" ", "␣")
    return f"◌{out}" if out and unicodedata.category(out[0]).startswith("M") else out


def bar(part: float, width: int) -> str:
    """A bar that fills ``part`` (0 to 1) of ``width`` cells, to an eighth of a cell."""
    eighths = round(max(0.0, min(1.0, part)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (EIGHTHS[rest] if rest else "")


def spark(values: Iterable[float], top: float) -> str:
    """One cell a value, from nothing to ``top``; what is below a sixteenth of it is a dot."""
    return "".join("·" if value < top / 16 else LEVELS[min(7, int(value / top * 8))] for value in values)


def percent(part: float) -> Text:
    """A probability or weight in percent; what is above 0 never looks like 0."""
    return Text("<0.1%" if 0 < part < 0.0005 else f"{part:.1%}")


def signed(value: float) -> Text:
    """A number of logits with its sign."""
    if round(value, 2) == 0:
        return Text("0.00", QUIET)
    return Text(number(value, "+.2f"), UP if value > 0 else DOWN)


def number(value: float, form: str = ".4g") -> str:
    """Four figures, or another format, with a minus sign and never a negative zero."""
    return format(value, form.replace(".", "z.")).replace("-", "−")


def heading(text: str, best: Next, about: str) -> Text:
    """A text, its likeliest next token, and what they are of."""
    parts = (answer(best.text), f"bold {ACCENT}"), (f"  {percent(best.probability)}", "bold"), (about, QUIET)
    return Text.assemble((text, "bold"), (" → ", QUIET), *parts)


def answer(text: str) -> str:
    """A predicted token without its spaces, or, if it has nothing else, with them drawn."""
    return drawn(text.strip(" ") or text)
