"""A study's result: an array with named axes, which draws itself in a terminal, a notebook and a file.

result = patching.patching(lm, text, other, over="heads", answers=(" Paris", " Rome"))
result.values, result.axes          # [layer head], and each axis's labels
result.top(5)                       # the largest entries, with their labels
result.show()                       # a map; .save("heads.html") writes it
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.extras import library
from cutaway.page import report
from cutaway.page.bundle import frame
from cutaway.page.charts import Heat, Labels
from cutaway.store import files

WIDEST = 60  # columns of a map in a terminal
STUDENT = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
)  # of 1 to 10 degrees of freedom


@dataclass(frozen=True, eq=False)
class Result:
    """``values`` [...], the labels of each of their ``axes``, and ``facts`` that the study states.

    ``margin`` [...] is half of each value's 95% interval, of a mean over an axis.
    """

    values: np.ndarray
    axes: Mapping[str, Sequence[Any]]
    title: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    margin: np.ndarray | None = None

    def __post_init__(self) -> None:
        if tuple(map(len, self.axes.values())) != self.values.shape:
            raise ValueError(f"axes of {list(map(len, self.axes.values()))} for values {self.values.shape}")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype, copy=bool(copy))

    def __getitem__(self, at: Any) -> Any:
        return self.values[at]

    def __len__(self) -> int:
        return len(self.values)

    def top(self, count: int = 10) -> list[tuple[Any, ...]]:
        """The entries of largest size, each as its labels and its value."""
        if count < 0:
            raise UserError(f"count is {count}: it goes from 0")
        labels = list(self.axes.values())
        order = np.argsort(-np.abs(self.values), axis=None, kind="stable")[:count]
        places = zip(*np.unravel_index(order, self.values.shape), strict=True)
        return [
            (*(axis[i] for axis, i in zip(labels, at, strict=True)), float(self.values[at])) for at in places
        ]

    def mean(self, axis: str = "pair") -> Result:
        """The mean over an axis, with half of its 95% interval (Student's) as ``margin``.

        Of fewer than three it is NaN: that of two is 12.7 standard errors, which tells nothing.
        """
        if axis not in self.axes:
            raise UserError(f"there is no axis {axis!r}: the axes are {', '.join(self.axes)}")
        at, count = list(self.axes).index(axis), len(self.axes[axis])
        margin = np.full(np.delete(self.values.shape, at), np.nan)
        if count > 2:
            margin = student(count - 1) * self.values.std(axis=at, ddof=1) / count**0.5
        axes = {name: labels for name, labels in self.axes.items() if name != axis}
        facts = {**self.facts, f"{axis}s": count}
        return Result(self.values.mean(axis=at), axes, f"{self.title}, mean over {axis}s", facts, margin)

    def to_xarray(self) -> Any:
        """The values as an xarray array with labelled axes."""
        axes = {name: list(map(str, labels)) for name, labels in self.axes.items()}
        return library("a labelled array", "xarray").DataArray(
            self.values, axes, list(axes), attrs=dict(self.facts), name=self.title
        )

    def to_pandas(self) -> Any:
        """The values as a pandas series, indexed by the axes."""
        pandas = library("a table", "pandas")
        index = pandas.MultiIndex.from_product(list(self.axes.values()), names=list(self.axes))
        return pandas.Series(self.values.ravel(), index, name=self.title)

    def show(self, *at: int) -> Picture:
        """The last two axes as a map, at these indices of the axes before them (0 where left out)."""
        values, axes = self.values, list(self.axes.items())
        margin = self.margin
        if len(at) > max(values.ndim - 2, 0):
            raise UserError(
                f"show() takes indices of {max(values.ndim - 2, 0)} axes, and these are {len(at)}"
            )
        while values.ndim > 2:
            i, at = (at[0], at[1:]) if at else (0, ())
            values, axes = values[i], axes[1:]
            margin = None if margin is None else margin[i]
        if values.ndim == 1:
            values, axes = values[None], [("", [""]), *axes]
            margin = None if margin is None else margin[None]
        return Picture(values, axes, self.title, self.facts, margin)


@dataclass(frozen=True, eq=False)
class Picture:
    """A map of a matrix: text in a terminal, a page in a notebook, which ``save`` writes."""

    values: np.ndarray
    axes: Sequence[tuple[str, Sequence[Any]]]
    title: str
    facts: Mapping[str, Any]
    margin: np.ndarray | None = None

    def _text(self, row: int, column: int) -> str:
        """A cell's value, and its margin where it has one."""
        bounded = self.margin is not None and not np.isnan(self.margin[row, column])
        margin = f" ±{self.margin[row, column]:.2f}" if bounded and self.margin is not None else ""
        return f"{self.values[row, column]:.2f}{margin}"

    def __repr__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        (row, rows), (column, columns) = self.axes
        left_out = f", {WIDEST} of {len(columns):,} columns" if len(columns) > WIDEST else ""
        table = Table(title=self._caption + left_out, box=None, padding=(0, 1), title_justify="left")
        table.add_column(f"{row} \\ {column}")
        for label in columns[:WIDEST]:
            table.add_column(str(label).strip(), justify="right", no_wrap=True)
        shown = range(min(len(columns), WIDEST))
        for n, label in enumerate(rows):
            table.add_row(str(label), *(self._text(n, column) for column in shown))
        out, width = io.StringIO(), 8 if self.margin is None else 14
        Console(file=out, width=max(100, width * len(shown)), force_terminal=False).print(table)
        return out.getvalue()

    @property
    def _facts(self) -> list[str]:
        return [
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.facts.items()
        ]

    @property
    def _caption(self) -> str:
        return f"{self.title} ({', '.join(self._facts)})" if self.facts else self.title

    @property
    def html(self) -> str:
        """One HTML file that needs nothing else."""
        (row, rows), (column, columns) = self.axes
        title = self.title[:1].upper() + self.title[1:]
        facts = [report.Text(", ".join(self._facts))] if self.facts else []
        values = np.asarray(self.values, float).tolist()
        labels = Labels(row or "all", list(map(str, rows))), Labels(column, list(map(str, columns)))
        return report.html(
            title, [*facts, Heat(f"{row} by {column}".strip().capitalize(), *labels, values, "value")]
        )

    def _repr_html_(self) -> str:
        return frame(self.html, 380 + 28 * min(len(self.values), 24))

    def save(self, path: str | Path) -> Path:
        """Writes the page to a file, and returns its path."""
        files.write_file(path, self.html)
        return Path(path)


def margin(values: np.ndarray) -> float:
    """Half of the 95% interval of a mean; NaN of fewer than three values."""
    if len(values) < 3:
        return float("nan")
    return float(student(len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)


def student(freedom: int) -> float:
    """How many standard errors half of a 95% interval is: Student's, by its expansion in 1 / freedom."""
    if freedom <= len(STUDENT):
        return STUDENT[freedom - 1]
    z = 1.959964
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96)
    return sum(term / freedom**n for n, term in enumerate(terms))
