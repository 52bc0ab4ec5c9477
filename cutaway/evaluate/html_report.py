"""The HTML page that a report is written in: one file, light and dark, as wide as the screen."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

QUIET = "rgba(128,128,128,0.35)"  # a plot's lines, on either background
STYLE = """:root{color-scheme:light dark}
body{font:15px/1.5 system-ui;margin:2rem auto;max-width:90rem;padding:0 1rem;overflow-wrap:anywhere}
table{border-collapse:collapse}
td,th{padding:.15rem .8rem .15rem 0;text-align:left;vertical-align:top;font-variant-numeric:tabular-nums}
pre{overflow-x:auto}
.wide{overflow-x:auto}.wide td,.wide th{white-space:nowrap;overflow-wrap:normal}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(24rem,100%),1fr));gap:1.5rem 2rem}
.plots h2{font-size:1rem;margin:0}.plots>*{min-width:0}"""
PLOT = {"responsive": True, "displayModeBar": False}


def document(title: str, body: str, style: str = "") -> str:
    """The page of a body, which is HTML, under its title; ``style`` is CSS of its own."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style>"
        f"<h1>{html.escape(title)}</h1>{body}</html>"
    )


def rendered(markdown: str) -> str:
    """HTML of a report's Markdown; its tables scroll where the screen is narrow."""
    from markdown_it import MarkdownIt

    made = MarkdownIt("commonmark").enable("table").render(markdown)
    return made.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def plot(figure: Figure, *, script: bool, height: int = 300, **layout: Any) -> str:
    """A plotly figure that suits both backgrounds; the page's first has plotly's ``script``."""
    figure.update_layout(
        template="none",
        height=height,
        font_color="#808080",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 10, "t": 20, "b": 45},
        **layout,
    )
    lines = {"gridcolor": QUIET, "zerolinecolor": QUIET}
    figure.update_xaxes(lines)
    figure.update_yaxes(lines)
    return figure.to_html(full_html=False, include_plotlyjs=script, config=PLOT)


def plots(titled: list[tuple[str, str]]) -> str:
    """Plots under their titles, side by side where there is room."""
    each = "".join(f"<div><h2>{html.escape(title)}</h2>{made}</div>" for title, made in titled)
    return f'<div class="plots">{each}</div>'


def data(found: str) -> str:
    """What the plots and tables are made of, folded away."""
    return f"<details><summary>The data</summary><pre>{html.escape(found)}</pre></details>"
