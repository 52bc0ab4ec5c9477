"""A `Plot` as SVG: lines with bands, points with intervals and labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from cutaway.page.charts import Axis, Plot, Series
from cutaway.page.svg import scales
from cutaway.page.svg.drawing import SERIES, Drawing, text_width

DASHES = ("", "7 4", "2 3", "9 3 2 3")
RATIO = 0.55
TITLE, ABOVE, BELOW = 26, 22, 40  # pixels of the title, of the axis' name above, of the numbers below


class _Frame:
    """The area of the plot, and its two scales."""

    def __init__(self, spec: Plot, width: float, top: float) -> None:
        lines = [one for one in spec.series if not one.faint]
        self.named = 1 < len(lines) < 9 and all(one.line for one in lines)
        height = max(230, min(360, width * RATIO))
        values = [v for one in spec.series for v in (*one.y, *(one.low or ()), *(one.high or ()))]
        ys = scales.domain(spec.y, [*values, *(value for _, value in spec.marks)])
        across = [v for one in spec.series for v in one.x]
        xs = scales.domain(_exact(spec, across), across)
        self.down = scales.ticks(*ys, max(3, int((height - 70) / 44)), spec.y.log, spec.y.whole)
        self.left = max(24, scales.widest([text for _, text in self.down])) + 10
        beside = min(160.0, scales.widest([one.name for one in lines]) * 1.08) + 12
        self.right = width - (beside if self.named else 10)
        self.top, self.floor = top + ABOVE, top + height - BELOW
        self.across = scales.ticks(*xs, int((self.right - self.left) / 74), spec.x.log, spec.x.whole)
        self.logs = spec.x.log, spec.y.log
        self.x = scales.scale(xs, (self.left, self.right), spec.x.log)
        self.y = scales.scale(ys, (self.floor, self.top), spec.y.log)

    def at(self, x: float | None, y: float | None) -> tuple[float, float] | None:
        """The pixel of a point; None for no point, or for one that a logarithmic axis lacks."""
        if (
            x is None
            or y is None
            or not scales.finite([x], self.logs[0])
            or not scales.finite([y], self.logs[1])
        ):
            return None
        return self.x(x), self.y(y)

    def points(self, xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
        """The points that can be drawn."""
        return [one for x, y in zip(xs, ys, strict=True) if (one := self.at(x, y)) is not None]


def _exact(spec: Plot, values: Iterable[Any]) -> Axis:
    """Lines go from edge to edge; clouds of points keep a little room."""
    known = scales.finite(values, spec.x.log)
    if not known or min(known) == max(known) or not all(one.line for one in spec.series):
        return spec.x
    low = min(known) if spec.x.low is None else spec.x.low
    return Axis(
        spec.x.title, spec.x.unit, spec.x.log, low, max(known) if spec.x.high is None else spec.x.high
    )


def role(series: Series, i: int) -> str:
    """The colour of the i-th series."""
    return f"series-{(i if series.color is None else series.color) % SERIES + 1}"


def drawn(spec: Plot, width: int) -> str:
    """The plot as an SVG."""
    sheet = Drawing(spec.title, width, about=spec.note)
    sheet.text(0, 14, spec.title, "ink", size=14, bold=True)
    legend = [one for one in spec.series if not one.faint and one.name]
    frame = _Frame(spec, width, TITLE)
    if not frame.named and len(legend) > 1:
        frame = _Frame(spec, width, _legend(sheet, spec, legend, width))
    _axes(sheet, spec, frame)
    for i, series in enumerate(spec.series):
        _series(sheet, series, i, frame)
    if frame.named:
        _end_names(sheet, spec, frame)
    _labels(sheet, spec, frame)
    y = frame.floor + BELOW
    for line in scales.wrapped(spec.note, width):
        y += 17
        sheet.text(0, y, line)
    sheet.height = y
    return str(sheet)


def _legend(sheet: Drawing, spec: Plot, listed: list[Series], width: float) -> float:
    x, y = 0.0, TITLE + 10.0
    for one in listed:
        wide = text_width(one.name) + 32
        if x and x + wide > width:
            x, y = 0.0, y + 18
        sheet.circle(x + 6, y - 4, 4, role(one, list(spec.series).index(one)))
        sheet.text(x + 16, y, one.name)
        x += wide
    return y + 6


def _axes(sheet: Drawing, spec: Plot, frame: _Frame) -> None:
    for value, text in frame.down:
        y = frame.y(value)
        sheet.line([(frame.left, y), (frame.right, y)], "rule")
        sheet.text(frame.left - 8, y + 4, text, anchor="end")
    sheet.line([(frame.left, frame.floor), (frame.right, frame.floor)], "quiet")
    for value, text in frame.across:
        x = frame.x(value)
        sheet.line([(x, frame.floor), (x, frame.floor + 4)], "quiet")
        sheet.text(x, frame.floor + 17, text, anchor="middle")
    sheet.text(0, frame.top - 10, scales.titled(spec.y))
    sheet.text(frame.right, frame.floor + 35, scales.titled(spec.x), anchor="end")
    for name, value in spec.marks:
        sheet.line([(frame.left, frame.y(value)), (frame.right, frame.y(value))], "quiet", dash="2 4")
        sheet.text(frame.right - 4, frame.y(value) - 5, name, anchor="end")


def _series(sheet: Drawing, series: Series, i: int, frame: _Frame) -> None:
    points = frame.points(series.x, series.y)
    colour = role(series, i)
    if series.low is not None and series.high is not None:
        both = zip(series.x, series.low, series.high, strict=True)
        ends = [(frame.at(x, low), frame.at(x, high)) for x, low, high in both]
        lows, highs = (
            zip(*((a, b) for a, b in ends if a and b), strict=True) if any(map(all, ends)) else ((), ())
        )
        if series.line and len(points) > 2:
            around = "".join(
                f"{'L' if k else 'M'}{x:.1f} {y:.1f}" for k, (x, y) in enumerate([*highs, *lows[::-1]])
            )
            sheet.path(around + "Z", colour, filled=True, opacity=0.16)
        else:
            for low, high in zip(lows, highs, strict=True):
                sheet.line([low, high], colour, width=1.5)
    if series.line and len(points) > 1:
        dash = DASHES[i // SERIES % len(DASHES)]
        sheet.line(
            points, colour, width=1 if series.faint else 2, dash=dash, opacity=0.35 if series.faint else 1
        )
    if series.points or len(points) == 1:
        for x, y in points:
            sheet.circle(x, y, 4, colour)


def _end_names(sheet: Drawing, spec: Plot, frame: _Frame) -> None:
    """The names of the lines at their right ends, moved apart where they would overlap."""
    ends = []
    for i, series in enumerate(spec.series):
        if not series.faint and (points := frame.points(series.x, series.y)):
            ends.append([points[-1][1], series, role(series, i)])
    ends.sort(key=lambda one: one[0])
    for before, one in pairwise(ends):
        one[0] = max(one[0], before[0] + 15)
    over = max(0.0, ends[-1][0] - frame.floor) if ends else 0.0
    for y, series, colour in ends:
        name = scales.shortened(series.name, 150)
        sheet.text(frame.right + 8, max(frame.top, y - over) + 4, name, colour, bold=True)


def _labels(sheet: Drawing, spec: Plot, frame: _Frame) -> None:
    """Labels of points, beside, below or above them: the first place that is free."""
    found = [
        (place, label)
        for series in spec.series
        for x, y, label in zip(series.x, series.y, series.labels or (), strict=False)
        if (place := frame.at(x, y)) is not None
    ]
    taken = [(x - 4, y - 4, x + 4, y + 4) for (x, y), _ in found]
    for (x, y), label in found:
        if label:
            wide = text_width(label)
            places = [(x + 8, y + 4), (x - 8 - wide, y + 4), (x - wide / 2, y - 9), (x - wide / 2, y + 18)]
            for left, base in places:
                box = (left, base - 10, left + wide, base + 3)
                free = not any(
                    o[0] < box[2] and box[0] < o[2] and o[1] < box[3] and box[1] < o[3] for o in taken
                )
                if free and left >= frame.left and box[2] <= sheet.width:
                    taken.append(box)
                    sheet.text(left, base, label, "ink")
                    break
