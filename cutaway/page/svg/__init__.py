"""Charts and diagrams as SVG: one file that needs no script, in the page's look, light and dark.

svg.chart(Plot("Loss", Axis("step"), Axis("loss"), [Series("nano", steps, losses)]))
"""

from __future__ import annotations

from cutaway.page.charts import Bars, Chart, Heat, Plot
from cutaway.page.svg import bars, heat, plot

__all__ = ["chart"]
WIDTH = 640


def chart(spec: Chart, width: int = WIDTH) -> str | None:
    """A chart as SVG; None for a table, which is text."""
    if isinstance(spec, Plot):
        return plot.drawn(spec, width)
    if isinstance(spec, Bars):
        return bars.drawn(spec, width)
    return heat.drawn(spec, width) if isinstance(spec, Heat) else None
