"""What training changed (``inspect/against.py``) in a terminal: four steps, a sentence and numbers each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cutaway.commands.cells import (
    ACCENT,
    DOWN,
    QUIET,
    UP,
    WIDTH,
    Step,
    bar,
    drawn,
    number,
    percent,
    print_step,
    spark,
    table,
    token,
)
from cutaway.commands.explanation_text import ROWS, since_stage

if TYPE_CHECKING:
    from cutaway.inspect.against import Against, Direction, Moved

SHOWN = 8  # next tokens, heads, MLPs, matrices


def show(found: Against, models: tuple[str, str], console: Console) -> None:
    """The four steps on a console."""
    width = min(console.width, WIDTH)
    title = Text.assemble((drawn(found.text).replace("␣", " ").strip(), "bold"), "\n")
    console.print(title.append(f"{models[0]} (base) and {models[1]} (tuned)", QUIET), width=width)
    for n, step in enumerate((_next(found), _kl(found, width), _moved(found), _written(found)), 1):
        print_step(n, step, console)


def _next(found: Against) -> Step:
    rows = table("token", "base>", "tuned>", "|")
    for one in found.next[:SHOWN]:
        style = UP if one.after >= one.before else DOWN
        rows.add_row(
            token(one.text), percent(one.before), percent(one.after), Text(bar(one.after, 30), style)
        )
    return "Next token", "The likeliest of both models.", rows


def _kl(found: Against, width: int) -> Step:
    top, t, n = max((kl, t, n) for t, row in enumerate(found.kl) for n, kl in enumerate(row))
    every = -(-len(found.stages) // max(8, width - 40))
    rows = table("token", "KL by block", "end>")
    first = max(0, len(found.tokens) - ROWS)
    for text, row in list(zip(found.tokens, found.kl, strict=True))[first:]:
        line = spark(row[::-every][::-1], top or 1)
        rows.add_row(token(text), Text(line, ACCENT), number(row[-1], ".2g"))
    sentence = (
        "KL divergence, in nats, of the tuned model's logit lens from the base's, from the embedding to the "
        f"last block: at most {number(top, '.2g')}, at {drawn(found.tokens[t])} after "
        f"{since_stage(found.stages[n])}."
    )
    left_out = f" The last {ROWS} of {len(found.tokens)} tokens are shown." if first else ""
    return "Where they part", sentence + left_out, rows


def _moved(found: Against) -> Step:
    sentence = "How far outputs moved, as a fraction of their norm in the base; attention sinks are left out."
    return "Heads and MLPs that moved", sentence, _parts("head", found.heads), _parts("MLP", found.mlps)


def _parts(name: str, parts: tuple[Moved, ...]) -> Table:
    rows = table(f"{name}>", "norm>", "moved>", "|")
    top = parts[0].change if parts else 0
    for one in parts[:SHOWN]:
        label = f"{one.layer}" if one.head is None else f"{one.layer}.{one.head}"
        shown = Text(bar(one.change / (top or 1), 24), ACCENT)
        rows.add_row(label, number(one.norm), percent(one.change), shown)
    return rows


def _written(found: Against) -> Step:
    rows = table("matrix", "change>", "share>", "promotes", "or, the other way")
    for one in found.written[:SHOWN]:
        direction = one.directions[0]
        name = Text(one.weight.removeprefix("blocks.").removesuffix(".weight"), QUIET)
        rows.add_row(name, percent(one.change), percent(direction.share), *_ends(direction))
    sentence = (
        "Of each matrix that writes into the residual stream: the norm of its change beside its own, and the "
        "largest direction of the change with its share of the squared norm, read through the unembedding."
    )
    if not found.written:
        sentence = "No matrix that writes into the residual stream changed."
    return "Directions written", sentence, rows


def _ends(direction: Direction) -> list[Text]:
    return [Text(" ".join(map(drawn, ends[:4])), ACCENT) for ends in (direction.promotes, direction.opposite)]
