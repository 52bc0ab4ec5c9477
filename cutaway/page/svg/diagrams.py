"""Diagrams that are no charts: tokens of a text, merges of a word, masks, heads that share, a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from cutaway.page.svg import scales
from cutaway.page.svg.drawing import SERIES, Drawing, text_width

TITLE = 34  # pixels of the title and the room below it
SYMBOL = 8.4  # pixels of a letter of a symbol
LONGEST = 1_000  # tokens that are drawn of a text


def tokens(title: str, rows: Sequence[tuple[str, Sequence[str], Sequence[str]]], width: int = 640) -> str:
    """A text as several tokenizers cut it: a row's name, its pieces, and what is below each (such as ids)."""
    sheet = Drawing(title, width)
    sheet.text(0, 14, title, "ink", size=14, bold=True)
    y = float(TITLE)
    for name, pieces, below in rows:
        if name:
            sheet.text(0, y + 10, name)
            y += 18
        x = 0.0
        for i, piece in enumerate(pieces[:LONGEST]):
            shown = piece.replace(" ", "␣").replace("\n", "⏎")
            under = below[i] if below else ""
            wide = max(SYMBOL * len(shown), text_width(under)) + 10
            if x and x + wide > width:
                x, y = 0.0, y + (50 if below else 32)
            sheet.rect(x, y, wide, 24, f"series-{i % SERIES + 1}", opacity=0.22, radius=3)
            sheet.text(x + wide / 2, y + 16, shown, "ink", anchor="middle", size=13, mono=True)
            if under:
                sheet.text(x + wide / 2, y + 38, under, anchor="middle", size=11)
            x += wide + 4
        y += 58 if below else 42
        if len(pieces) > LONGEST:
            sheet.text(0, y, f"and {len(pieces) - LONGEST:,} more")
            y += 22
    sheet.height = y - 14
    return str(sheet)


def merges(title: str, states: Sequence[Sequence[str]], width: int = 640) -> str:
    """The symbols of a word after each merge, the word's own first: a row each, the new symbol in colour."""
    rows = [(states[0], set[str]())]
    rows += [(now, set(now) - set(before)) for before, now in pairwise(states)]
    wide = max(sum(SYMBOL * len(one) + 14 for one in row) for row, _ in rows)
    sheet = Drawing(title, max(width, wide + 190))
    sheet.text(0, 14, title, "ink", size=14, bold=True)
    for n, (row, new) in enumerate(rows):
        x, y = 150.0, TITLE + 34.0 * n
        what = "its characters" if not n else f"merge {n}"
        sheet.text(0, y + 16, what)
        for one in row:
            box = SYMBOL * len(one) + 10
            if one in new:
                sheet.rect(x, y, box, 24, "accent", opacity=0.25, radius=3, border="accent")
            else:
                sheet.rect(x, y, box, 24, "cell", radius=3)
            sheet.text(x + box / 2, y + 16, one.replace(" ", "␣"), "ink", anchor="middle", size=13, mono=True)
            x += box + 4
    sheet.height = TITLE + 34.0 * len(rows) - 8
    return str(sheet)


def masks(title: str, kinds: Sequence[tuple[str, Sequence[Sequence[bool]]]], width: int = 640) -> str:
    """Who sees whom: a small matrix a mechanism, a row a query, a column a key."""
    sheet = Drawing(title, width)
    sheet.text(0, 14, title, "ink", size=14, bold=True)
    columns = 4
    side = (width - 18.0 * (columns - 1)) / columns
    for n, (name, mask) in enumerate(kinds):
        x, y = n % columns * (side + 18), TITLE + n // columns * (side + 34)
        sheet.text(x, y + 10, name, "ink", bold=True)
        cell = side / len(mask)
        seen = "".join(
            f"M{x + cell * c:.1f} {y + 18 + cell * r:.1f}h{cell - 1:.1f}v{cell - 1:.1f}h-{cell - 1:.1f}Z"
            for r, row in enumerate(mask)
            for c, one in enumerate(row)
            if one
        )
        sheet.rect(x, y + 18, side - 1, side - 1, "cell")
        sheet.path(seen, "heat", filled=True)
    sheet.height = TITLE + (len(kinds) + columns - 1) // columns * (side + 34) - 8
    return str(sheet)


@dataclass(frozen=True)
class Sharing:
    """Query heads, and the key-value heads that they share in equal groups.

    ``kept``: what the cache holds of a token, in words. ``latent``: keys and values are made of one vector of
    so many numbers. ``state``: the past is one matrix a head.
    """

    name: str
    heads: int
    groups: int
    kept: str
    latent: int = 0
    state: bool = False


MOST = 16  # heads that are drawn
NAMES = 84  # pixels of the rows' names


def sharing(title: str, kinds: Sequence[Sharing], width: int = 640) -> str:
    """Query heads above, what they read below, and lines between them: a panel a mechanism."""
    sheet = Drawing(title, width)
    sheet.text(0, 14, title, "ink", size=14, bold=True)
    columns = 1 if len(kinds) == 1 else 2
    panel = (width - 20 * (columns - 1)) / columns
    for n, kind in enumerate(kinds):
        _panel(sheet, kind, n % columns * (panel + 20), TITLE + n // columns * 172, panel)
    lines = max(len(scales.wrapped(kind.kept, panel)) for kind in kinds)
    sheet.height = TITLE + (len(kinds) + columns - 1) // columns * 172 - 16 + 16 * (lines - 1)
    return str(sheet)


def _panel(sheet: Drawing, kind: Sharing, x: float, y: float, width: float) -> None:
    sheet.text(x, y + 12, kind.name, "ink", bold=True)
    heads, groups = min(kind.heads, MOST), min(kind.groups, MOST)
    top, bottom = y + 44.0, y + 104.0

    def middles(count: int) -> list[float]:
        room = width - NAMES
        return [x + NAMES + room * (k + 0.5) / count for k in range(count)]

    side = min(22.0, (width - NAMES) / max(heads, 1) - 4)
    queries, keys = middles(heads), middles(groups)
    sheet.text(x, top + 4, "queries")
    sheet.text(x, bottom + 4, "state" if kind.state else "keys, values")
    for h, at in enumerate(queries):
        g = h * groups // heads
        colour = f"series-{g % SERIES + 1}"
        sheet.line([(at, top + side / 2), (keys[g], bottom - side / 2)], colour, width=1.5, opacity=0.7)
        sheet.rect(at - side / 2, top - side / 2, side, side, colour, opacity=0.3, radius=3)
    for g, at in enumerate(keys):
        colour = f"series-{g % SERIES + 1}"
        solid = 1.0 if not kind.latent else 0.25
        sheet.rect(at - side / 2, bottom - side / 2, side, side, colour, opacity=solid, radius=3)
        if kind.latent:
            sheet.line(
                [(at, bottom + side / 2), (x + NAMES + (width - NAMES) / 2, y + 128)], "quiet", dash="2 3"
            )
    if kind.latent:
        wide = min(width - NAMES, 120.0)
        left = x + NAMES + (width - NAMES - wide) / 2
        sheet.rect(left, y + 128, wide, 16, "accent", radius=3)
    for n, line in enumerate(scales.wrapped(kind.kept, width)):
        sheet.text(x, y + (160 if kind.latent else 136) + 16 * n, line)


@dataclass(frozen=True)
class Step:
    """A box of a block: its name, what is in it, and how many parameters it has."""

    name: str
    about: str
    parameters: int = 0


def block(
    title: str, width_of_stream: int, branches: Sequence[Sequence[Step]], after: str, width: int = 640
) -> str:
    """A block as its residual stream, down the left side, and the branches that read it and add to it."""
    sheet = Drawing(title, width)
    sheet.text(0, 14, title, "ink", size=14, bold=True)
    stream, left = 60.0, 130.0
    y = TITLE + 16.0
    sheet.text(0, y - 4, f"residual stream: {width_of_stream:,} numbers a token")
    begin = y + 4
    y += 20
    for steps in branches:
        first = y + 21.0
        sheet.line([(stream, first), (left - 2, first)], "quiet", width=1.5, arrow=True)
        for n, step in enumerate(steps):
            sheet.rect(left, y, width - left, 42, "cell", radius=4)
            sheet.text(left + 12, y + 18, step.name, "ink", bold=True)
            sheet.text(left + 12, y + 34, step.about)
            if step.parameters:
                sheet.text(width - 12, y + 18, f"{step.parameters:,}", "ink", anchor="end")
                sheet.text(width - 12, y + 34, "parameters", anchor="end", size=11)
            if n + 1 < len(steps):
                sheet.line([(left + 30, y + 42), (left + 30, y + 53)], "quiet", width=1.5, arrow=True)
            y += 54
        back = y - 54 + 21
        if len(steps) == 1:
            back += 12
        sheet.line([(left, back), (stream + 13, back)], "accent", width=1.5, arrow=True)
        y += 10
        sheet.circle(stream, back, 10, "paper", "accent")
        sheet.text(stream, back + 4.5, "+", "accent", anchor="middle", size=15, bold=True)
    sheet.parts.insert(2, f'<path class="none s-ink" d="M{stream} {begin}V{y + 12}" stroke-width="3"/>')
    for k, line in enumerate(scales.wrapped(after, width)):
        sheet.text(0, y + 30 + 17 * k, line)
    sheet.height = y + 30 + 17 * (len(scales.wrapped(after, width)) - 1)
    return str(sheet)
