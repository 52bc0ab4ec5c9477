"""A `Heat` as SVG: a matrix of cells, the deeper the larger; blue ones are negative."""

from __future__ import annotations

import math

from cutaway.page.charts import Heat
from cutaway.page.svg import scales
from cutaway.page.svg.drawing import Drawing, text_width

LARGEST, WRITTEN = 40.0, 30.0  # pixels of a cell: at most, and from which its number is in it


def drawn(spec: Heat, width: int) -> str:
    """The matrix as an SVG."""
    sheet = Drawing(spec.title, width, about=spec.note)
    sheet.text(0, 14, spec.title, "ink", size=14, bold=True)
    rows, columns = ([shown(label) for label in axis.labels] for axis in (spec.rows, spec.columns))
    left = min(160.0, max(18.0, scales.widest(rows) * 1.1) + 32)
    cell = max(2.0, min(LARGEST, (width - left - 2) / max(1, len(columns))))
    slanted = scales.widest(columns) > cell - 4
    top = 44 + (min(110.0, scales.widest(columns) * 0.8 + 8) if slanted else 16)
    high = max(min(cell, 26.0), 14.0 if len(rows) < 13 else 0.0)
    known = scales.finite(v for row in spec.values for v in row)
    signed = spec.signed if spec.signed is not None else min(known, default=0.0) < 0
    most = spec.high or max(map(abs, known), default=1.0) or 1.0
    sheet.text(left, 34, spec.columns.title)
    sheet.text(10, top + high * len(rows) / 2, spec.rows.title, anchor="middle", turn=-90)
    every = max(1, math.ceil(14 / cell))
    for c, name in enumerate(columns):
        if c % every == 0:
            x = left + cell * (c + 0.5)
            sheet.text(
                x,
                top - 6,
                scales.shortened(name, 130),
                "ink",
                anchor="start" if slanted else "middle",
                turn=-50 if slanted else 0,
            )
    every = max(1, math.ceil(13 / high))
    for r, name in enumerate(rows):
        if r % every == 0:
            sheet.text(
                left - 7, top + high * (r + 0.5) + 4, scales.shortened(name, left - 28), "ink", anchor="end"
            )
        for c in range(len(columns)):
            _cell(sheet, spec.values[r][c], left + cell * c, top + high * r, cell, high, signed, most)
    y = top + high * len(rows) + 6
    y = _legend(sheet, spec.value, most, signed, left, y)
    for line in scales.wrapped(spec.note, width):
        y += 17
        sheet.text(0, y, line)
    sheet.width = max(
        sheet.width if spec.note else 0,
        left + cell * len(columns) + (60 if slanted else 2),
        text_width(spec.title, 15),
        left + 300,
    )
    sheet.height = y
    return str(sheet)


def shown(label: str) -> str:
    """A label without a token's leading space, unless it is nothing else."""
    return label.strip() or label.replace(" ", "␣").replace("\n", "⏎")


def _cell(
    sheet: Drawing, value: float, x: float, y: float, wide: float, high: float, signed: bool, most: float
) -> None:
    gap = 1.0 if wide > 6 else 0.0
    sides = (x, y, wide - gap, high - gap)
    if value is None or not math.isfinite(value):
        return
    part = math.sqrt(min(1.0, abs(value) / most))
    if wide > 4 or part < 0.02:
        sheet.rect(*sides, "cell")
    if part >= 0.02:
        strength = part * (0.75 if wide >= WRITTEN else 1)
        sheet.rect(*sides, "cool" if signed and value < 0 else "heat", opacity=strength)
    if wide >= WRITTEN and 0 < abs(value) != most and abs(value) < 999.5 and part >= 0.02:
        sheet.text(x + wide / 2, y + high / 2 + 4, _written(value), "ink", anchor="middle", size=11)


def _written(value: float) -> str:
    """Four letters at most."""
    if float(value).is_integer():
        return f"{value:.0f}".replace("-", "−")
    digits = 0 if abs(value) >= 9.995 else 1 if abs(value) >= 0.995 else 2
    return f"{value:.{digits}f}".replace("0.", ".", 1).replace("-", "−")


def _legend(sheet: Drawing, name: str, most: float, signed: bool, left: float, y: float) -> float:
    steps = 24
    for k in range(steps):
        at = (2 * (k + 0.5) / steps - 1) if signed else (k + 0.5) / steps
        sheet.rect(left + 5 * k, y + 6, 5, 8, "cell")
        sheet.rect(left + 5 * k, y + 6, 5, 8, "cool" if at < 0 else "heat", opacity=math.sqrt(abs(at)))
    low = f"−{scales.brief(most)}" if signed else "0"
    sheet.text(left, y + 27, low)
    sheet.text(left + 5 * steps, y + 27, scales.brief(most), anchor="end")
    sheet.text(left + 5 * steps + 10, y + 14, name)
    return y + 30
