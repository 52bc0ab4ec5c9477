"""Charts and diagrams as SVG: one file that needs no script, in the page's look, light and dark.

render.chart(Plot("Loss", Axis("step"), Axis("loss"), [Series("nano", steps, losses)]))
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from cutaway.page.charts import Bars, Chart, Heat, Plot
from cutaway.page.svg import bars, heat, plot

WIDTH = 640


def named(charts: Iterable[Chart]) -> dict[str, str]:
    """The charts as SVG, by names made of their titles; a table is none."""
    found: dict[str, str] = {}
    for spec in charts:
        drawn = chart(spec)
        if drawn is not None:
            base = re.sub(r"[^a-z0-9]+", "-", spec.title.lower()).strip("-")[:60] or "plot"
            found[base if base not in found else f"{base}-{len(found)}"] = drawn
    return found


def chart(spec: Chart, width: int = WIDTH) -> str | None:
    """A chart as SVG; None for a table, which is text."""
    if isinstance(spec, Plot):
        return plot.drawn(spec, width)
    if isinstance(spec, Bars):
        return bars.drawn(spec, width)
    return heat.drawn(spec, width) if isinstance(spec, Heat) else None
