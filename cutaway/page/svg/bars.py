"""`Bars` as SVG: a row a group, a bar or a dot a series, each with its number and its interval."""

from __future__ import annotations

from cutaway.page.charts import Axis, Bars
from cutaway.page.svg import heat, scales
from cutaway.page.svg.drawing import SERIES, Drawing, text_width

GAP = 10


def drawn(spec: Bars, width: int) -> str:
    """The bars as an SVG."""
    sheet = Drawing(spec.title, width, about=spec.note)
    sheet.text(0, 14, spec.title, "ink", size=14, bold=True)
    top = _legend(sheet, spec, width) if len(spec.series) > 1 else 26.0
    groups = [heat.shown(name) for name in spec.groups]
    thick = 15 if len(spec.series) > 1 else 20
    left = min(scales.widest(groups) * 1.08 + 14, width * 0.4)
    values = [v for one in spec.series for v in (*one.values, *(one.low or ()), *(one.high or ()))]
    values += [value for _, value in spec.marks]
    room = scales.widest([scales.brief(v) for one in spec.series for v in one.values]) + 14
    axis = spec.axis
    if not spec.dots and not axis.log and axis.low is None:
        axis = Axis(axis.title, axis.unit, False, min(0.0, *scales.finite(values), 0.0), axis.high)
    ends = scales.domain(axis, values)
    x = scales.scale(ends, (left + 6, width - room), axis.log)
    top += 34 if spec.marks else 20
    each = thick * len(spec.series) + GAP
    floor = top + each * len(spec.groups)
    sheet.text(left + 6, top - (20 if spec.marks else 6), scales.titled(axis))
    for value, text in scales.ticks(*ends, int((width - left - room) / 70), axis.log):
        sheet.line([(x(value), top), (x(value), floor)], "rule")
        sheet.text(x(value), floor + 16, text, anchor="middle")
    for name, value in spec.marks:
        sheet.line([(x(value), top), (x(value), floor)], "quiet", dash="2 4")
        sheet.text(x(value) + 4, top - 4, name)
    for g, name in enumerate(groups):
        y = top + each * g + GAP / 2
        shown = scales.shortened(name, left - 8)
        sheet.text(left - 8, y + thick * len(spec.series) / 2 + 4, shown, "ink", anchor="end", size=13)
        for s in range(len(spec.series)):
            _one(sheet, spec, g, s, x, y + thick * s, thick, ends, axis.log)
    y = floor + 22
    for line in scales.wrapped(spec.note, width):
        y += 17
        sheet.text(0, y, line)
    sheet.height = y
    return str(sheet)


def _role(spec: Bars, g: int, s: int) -> str:
    own = spec.series[s].color
    if own is None:
        own = s if spec.colors is None else spec.colors[g]
    return f"series-{own % SERIES + 1}"


def _legend(sheet: Drawing, spec: Bars, width: float) -> float:
    x, y = 0.0, 38.0
    for s, one in enumerate(spec.series):
        wide = text_width(one.name) + 34
        if x and x + wide > width:
            x, y = 0.0, y + 18
        sheet.rect(x, y - 9, 10, 10, _role(spec, 0, s), radius=1)
        sheet.text(x + 16, y, one.name)
        x += wide
    return y + 10


def _one(sheet, spec, g, s, x, y, thick, ends, log) -> None:
    series, middle, role = spec.series[s], y + thick / 2, _role(spec, g, s)
    value = series.values[g]
    if not scales.finite([value], log):
        sheet.text(x(ends[0]) + 4, middle + 4, "–")
        return
    zero = ends[0] if log else max(ends[0], min(ends[1], 0.0))
    begin, end = sorted((x(zero), x(value)))
    edge = end if not spec.dots else x(value) + 4
    if not spec.dots:
        sheet.rect(begin, y + 2, max(1.0, end - begin), thick - 4, role, radius=1)
    low, high = (side[g] if side else None for side in (series.low, series.high))
    if scales.finite([low], log) and scales.finite([high], log):
        a, b = x(low), x(high)
        around = f"M{a:.1f} {middle:.1f}H{b:.1f}M{a:.1f} {middle - 4:.1f}v8M{b:.1f} {middle - 4:.1f}v8"
        sheet.path(around, role if spec.dots else "ink", width=1.5)
        edge = max(edge, b)
    if spec.dots:
        sheet.circle(x(value), middle, 4, role)
    sheet.text(edge + 6, middle + 4, scales.brief(value), "ink")
