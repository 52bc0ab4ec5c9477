"""`cutaway attention distance`: how a score depends on the distance of two tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutaway.commands import plots
from cutaway.commands.console import model_path, on_screen, print_json, print_table
from cutaway.commands.options import Force, Html, Json, Svg
from cutaway.errors import UserError, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from cutaway.inspect.distance import Scheme

FARTHEST = 10_000_000  # tokens
DOUBLED = 4  # of the distances that the terminal shows, each is so many times the one before


def distance(
    model: str = "smollm2",
    /,
    *,
    base: str | None = None,
    length: int | None = None,
    html: Html = None,
    svg: Svg = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Show how a score falls with the distance of two tokens: a model's own RoPE or ALiBi.

    RoPE rotates queries and keys: shown is the score of two vectors of equal numbers, 1 at distance
    0, as a mean over distances up to a tenth larger. ALiBi adds to a score: shown is what it adds.

    **Examples:**

    cutaway attention distance

    cutaway attention distance smollm2 --base 10000,1000000 --length 100000 --svg drawings

    :param model: A model's name, a .gguf file or a folder.
    :param base: Compare these bases of RoPE instead of the model's own, with commas between.
    :param length: The farthest distance, in tokens. The model's context where none is given.
    """
    import cutaway
    from cutaway.inspect import distance as found

    if length is not None and not 1 <= length <= FARTHEST:
        raise UserError(f"--length is {length}: it must be from 1 to {FARTHEST:,}")
    plots.check(html, svg, force)
    bases = None if base is None else _bases(base)
    config: Any = cutaway.load(model_path(model)).config
    schemes = found.schemes(config) if bases is None else found.with_bases(config, bases)
    farthest = length or getattr(config, "context", None) or 4096
    name = Path(model).name
    plots.write_plots(found.report(name, schemes, farthest), html, svg, force)
    if as_json:
        print_json(
            {"model": model, "length": farthest, "schemes": [_plain(one, farthest) for one in schemes]}
        )
    elif html is None and svg is None:
        on_screen(lambda console: _show(schemes, name, farthest, console))


def _bases(listed: str) -> list[float]:
    try:
        bases = [float(one) for one in listed.split(",")]
    except ValueError:
        raise UserError(
            f"--base is {quoted(listed)}: give numbers with commas between, 10000,1000000"
        ) from None
    for one in bases:
        if not (math.isfinite(one) and one > 1):
            raise UserError(f"--base has {one:g}: a base is above 1")
    return bases


def _plain(scheme: Scheme, farthest: int) -> dict[str, Any]:
    from cutaway.inspect import distance as found

    kind = "alibi" if scheme.rotary is None else "rope"
    curves = [vars(curve) for curve in scheme.curves(farthest)]
    if scheme.rotary is None:
        return {"kind": kind, "curves": curves, "lowered": scheme.lowered}
    names = ("pair", "radians", "turn")
    rows = [dict(zip(names, row, strict=True)) for row in found.pairs(scheme.rotary, farthest)]
    return {"kind": kind, "base": scheme.rotary.base, "curves": curves, "pairs": rows}


def _show(schemes: Sequence[Scheme], name: str, farthest: int, console: Console) -> None:
    """A row a distance, a column a curve; then the pairs of the first rotary scheme."""
    from rich.table import Table
    from rich.text import Text

    from cutaway.inspect import distance as found

    curves = [curve for one in schemes for curve in one.curves(farthest)]
    table = Table("distance", *(curve.name for curve in curves), box=None, pad_edge=False)
    for column in table.columns:
        column.justify = "right"
    shown = sorted({*range(0, len(curves[0].distances), DOUBLED), len(curves[0].distances) - 1})
    for n in shown:
        table.add_row(f"{curves[0].distances[n]:,}", *(f"{curve.values[n]:.3f}" for curve in curves))
    rotary = next((one.rotary for one in schemes if one.rotary is not None), None)
    what = "the score of two equal vectors, 1 at distance 0" if rotary else "what is added to a score"
    console.print(Text.assemble((name, "bold cyan"), f"  {what}"), "", sep="\n")
    print_table(console, table)
    if rotary is None:
        return
    turns = Table("pair", "radians a token", "tokens of a turn", box=None, pad_edge=False)
    for column in turns.columns:
        column.justify = "right"
    for n, speed, turn in found.pairs(rotary, farthest):
        turns.add_row(f"{n:.0f}", f"{speed:.3g}", f"{turn:,.0f}")
    console.print("", Text(f"{rotary.size // 2} pairs of numbers turn, base {rotary.base:,.0f}:"), sep="\n")
    print_table(console, turns)
