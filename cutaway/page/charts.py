"""Charts as data: what a report gives, and the browser draws. None, NaN and infinite numbers are gaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Axis:
    """What an axis shows, and its unit. ``low`` and ``high`` are its ends, from the data where None.

    ``log``: its scale is logarithmic; ``whole``: it has whole numbers alone.
    """

    title: str
    unit: str = ""
    log: bool = False
    low: float | None = None
    high: float | None = None
    whole: bool = False


@dataclass(frozen=True)
class Series:
    """Points in order: ``x`` and ``y`` [n]; ``labels`` and intervals from ``low`` to ``high`` [n], or None.

    They are joined by a ``line``, drawn as ``points``, or both. ``color`` counts from 0; a ``faint`` line has
    no name in the legend.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    labels: Sequence[str] | None = None
    line: bool = True
    points: bool = False
    faint: bool = False
    color: int | None = None


@dataclass(frozen=True)
class Plot:
    """Series over two axes. ``marks``: named values of y; ``ordered``: colours go from first to last."""

    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    marks: Sequence[tuple[str, float]] = ()
    ordered: bool = False
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """One series of bars: ``values`` [g], one for each group, and intervals from ``low`` to ``high`` [g]."""

    name: str
    values: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    color: int | None = None


@dataclass(frozen=True)
class Bars:
    """A row for each group, a bar (or a dot) in it for each series; ``colors`` are of the groups."""

    title: str
    axis: Axis
    group: str
    groups: Sequence[str]
    series: Sequence[Bar]
    dots: bool = False
    marks: Sequence[tuple[str, float]] = ()
    colors: Sequence[int] | None = None
    note: str = ""


@dataclass(frozen=True)
class Labels:
    """An axis of a matrix: what it counts, and its entries."""

    title: str
    labels: Sequence[str]


@dataclass(frozen=True)
class Heat:
    """A matrix [rows columns] of what ``value`` names; ``signed`` has two hues around zero."""

    title: str
    rows: Labels
    columns: Labels
    values: Sequence[Sequence[float]]
    value: str
    high: float | None = None
    signed: bool | None = None
    margins: Sequence[Sequence[float]] | None = None  # half of each value's interval
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers under the names of their columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]
    note: str = ""


Chart = Plot | Bars | Heat | Table
KINDS = {Plot: "plot", Bars: "bars", Heat: "heatmap", Table: "grid"}  # the modules that draw them


def spec(chart: Chart) -> dict[str, Any]:
    """A chart's data for the browser, which JSON can hold: NaN and infinite numbers are null."""
    return {"kind": KINDS[type(chart)]} | _plain(asdict(chart))


def _plain(value: Any) -> Any:
    """JSON's own values: NaN and the infinite become null."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
