"""The loss curve of a run's metrics.jsonl, as text and as a page. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cutaway.bounds import is_finite
from cutaway.errors import UserError, quoted
from cutaway.page import report
from cutaway.page.charts import Axis, Plot, Series
from cutaway.page.svg import render
from cutaway.store.files import write_file
from cutaway.store.reading import json_lines

PAGE = "loss.html"
METRICS = "metrics.jsonl"
MEANS = 150  # of a long curve
LEVELS = " ▁▂▃▄▅▆▇█"
Points = list[tuple[int, float]]


def read_curve(folder: Path) -> dict[str, Points]:
    """Loss and validation loss by step; those that were never measured, or are no numbers, are left out."""
    curves: dict[str, Points] = {"loss": [], "validation_loss": []}
    path = folder / METRICS
    for numbers in json_lines(path) if path.is_file() else ():
        for name, points in curves.items():
            if name in numbers and is_finite(value := _number(numbers, name, path)):
                points.append((_number(numbers, "step", path), value))
    return {name: points for name, points in curves.items() if points}


def _number(numbers: dict[str, Any], name: str, path: Path) -> Any:
    if type(value := numbers.get(name)) not in (int, float):
        raise UserError(f"{path}: {name} is {quoted(value)}; it must be a number")
    return value


def text(points: Points, width: int = 60, height: int = 6) -> str:
    """A curve as lines of block characters, the axes' ends beside it."""
    values = means([value for _, value in points], width)
    low, high = min(values), max(values)
    scale = (height * 8 - 1) / (high - low) if high > low else 0.0
    eighths = [1 + round((value - low) * scale) for value in values]
    rows = []
    for row in reversed(range(height)):
        label = f"{high:8.3f}" if row == height - 1 else f"{low:8.3f}" if row == 0 else " " * 8
        rows.append(f"{label} │" + "".join(LEVELS[min(8, max(0, n - 8 * row))] for n in eighths))
    first, last = str(points[0][0]), str(points[-1][0])
    return "\n".join([*rows, f"{'step':>8}  {first}{last:>{max(1, len(values) - len(first))}}"])


def page(folder: Path) -> Path | None:
    """Write the run's loss.html and loss.svg, which need no network; None where nothing was logged."""
    curves = read_curve(folder)
    if not curves:
        return None
    series = list(_series(curves))
    note = "A faint line is every step." if any(one.faint for one in series) else ""
    title = "Loss by step" if "validation_loss" in curves else "Training loss by step"
    plot = Plot(title, Axis("step", whole=True), Axis("loss", "nats per token"), series, note=note)
    write_file(folder / PAGE, report.html(folder.name, [plot]))
    write_file((folder / PAGE).with_suffix(".svg"), render.chart(plot) or "")
    return folder / PAGE


def _series(curves: dict[str, Points]) -> Iterator[Series]:
    """Each curve; one of many points faintly, under the means of its neighbours."""
    for color, (name, points) in enumerate(curves.items()):
        steps, values = ([one[n] for one in points] for n in (0, 1))
        words, many = name.replace("_", " "), len(points) > 4 * MEANS
        yield Series(words, steps, values, faint=many, points=len(points) < 30, color=color)
        if many:
            smooth = means(values, MEANS), means(steps, MEANS)
            yield Series(f"{words}, mean of {len(points) // MEANS} steps", smooth[1], smooth[0], color=color)


def means(values: Sequence[float], width: int) -> list[float]:
    """Downsample to at most ``width`` means of neighbours."""
    count = min(width, len(values))
    ends = [round(n * len(values) / count) for n in range(count + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(ends)]
