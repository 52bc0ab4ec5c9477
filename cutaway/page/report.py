"""A report as one HTML file: parts are Markdown, charts, and grids of charts, one below another.

report.html("Tokenizers side by side", [Text("..."), Grid([Bars(...), Plot(...)])])
"""

from __future__ import annotations

import html as escaping
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cutaway.page import bundle
from cutaway.page.charts import Chart, spec
from cutaway.page.svg import render
from cutaway.store import files


@dataclass(frozen=True)
class Text:
    """Markdown; its tables scroll where the screen is narrow, and HTML in it is text."""

    markdown: str


@dataclass(frozen=True)
class Html:
    """HTML that the caller has escaped; it cannot style itself or run anything."""

    html: str


@dataclass(frozen=True)
class Grid:
    """Charts side by side where there is room."""

    charts: Sequence[Chart]


@dataclass(frozen=True)
class Fold:
    """A text that is folded away under its name."""

    name: str
    text: str


Part = Chart | Text | Html | Grid | Fold


@dataclass(frozen=True)
class Report:
    """A title and what is below it: as one HTML file, or its charts alone."""

    title: str
    parts: Sequence[Part]

    def html(self) -> str:
        """The file."""
        return html(self.title, self.parts)

    def charts(self) -> list[Chart]:
        """Its charts, those of grids among them."""
        found = (part.charts if isinstance(part, Grid) else [part] for part in self.parts)
        return [one for parts in found for one in parts if not isinstance(one, Text | Html | Fold)]


def save(made: Report, folder: Path) -> None:
    """Write a report into a folder: report.html, and each chart as plots/NAME.svg."""
    files.write_file(folder / "report.html", made.html())
    (folder / "plots").mkdir(exist_ok=True)
    for name, drawn in render.named(made.charts()).items():
        files.write_file(folder / "plots" / f"{name}.svg", drawn)


def html(title: str, parts: Sequence[Part], *, frames: str = "") -> str:
    """The file. ``frames``: see ``bundle.document``, for parts with framed pages."""
    charts: list[Chart] = []
    inside = "".join(_html(part, charts) for part in parts)
    body = (
        '<a class="skip" href="#report">Skip to the report</a><main id="report" tabindex="-1">'
        '<div class="top"><p class="mark">Cutaway</p><span id="theme"></span></div>'
        f'<h1 class="sentence">{escaping.escape(title)}</h1>{inside}</main>'
    )
    data = json.dumps([spec(chart) for chart in charts], separators=(",", ":")).encode()
    styles = ("charts.css", "report.css")
    return bundle.document(
        title, body, entry="report.js", styles=styles, data=zlib.compress(data, 9), frames=frames
    )


def _html(part: Part, charts: list[Chart]) -> str:
    if isinstance(part, Text):
        return _rendered(part.markdown)
    if isinstance(part, Html):
        return part.html
    if isinstance(part, Grid):
        return f'<div class="charts">{"".join(_html(chart, charts) for chart in part.charts)}</div>'
    if isinstance(part, Fold):
        name, text = escaping.escape(part.name), escaping.escape(part.text)
        return f'<details><summary>{name}</summary><pre tabindex="0">{text}</pre></details>'
    charts.append(part)
    return f'<figure data-chart="{len(charts) - 1}"></figure>'


def _rendered(markdown: str) -> str:
    from markdown_it import MarkdownIt

    made = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    made = made.replace(
        ' style="text-align:right"', ' class="number"'
    )  # the policy allows no style of its own
    made = made.replace("<pre>", '<pre tabindex="0">')
    return made.replace("<table>", '<div class="wide" tabindex="0"><table>').replace(
        "</table>", "</table></div>"
    )
