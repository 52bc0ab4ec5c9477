"""Plots of a verb as files: one HTML page, and SVG drawings in a folder."""

from __future__ import annotations

import tempfile
import webbrowser
from collections.abc import Mapping
from pathlib import Path

from cutaway.commands.console import wrote
from cutaway.commands.terminal import note
from cutaway.errors import OperationalError, UserError, plural
from cutaway.page.report import Report
from cutaway.page.svg import render
from cutaway.store import files


def check(html: Path | None, svg: Path | None, force: bool) -> None:
    """UserError for what would be overwritten, or cannot be written, before any work."""
    if html is not None:
        files.check_file(html, force)
    if svg is None:
        return
    if svg.is_file():
        raise UserError(f"{svg}: is a file; --svg names a folder, in which each plot becomes a file")
    if not force and svg.is_dir() and any(svg.glob("*.svg")):
        raise UserError(f"{svg}: has SVG files already: choose another folder, or give --force")
    with files.disk_errors(svg):
        svg.mkdir(parents=True, exist_ok=True)
    files.check_file(svg / "plot.svg", force=True)


def check_alone(svg: Path | None, other: object) -> None:
    """UserError for --svg beside another view of the same text."""
    if svg is not None and other:
        raise UserError("--svg draws one text in one model: leave out other views, --html and --open")


def write_page(document: str, target: Path | None, name: str, open_page: bool) -> None:
    """Write a page, to ``name`` in a temporary folder without a target, and open it if that was asked for.

    OperationalError where no browser can be opened.
    """
    target = target or Path(tempfile.mkdtemp(prefix="cutaway-")) / name
    files.write_file(target, document)
    wrote(target)
    if open_page and not webbrowser.open(target.resolve().as_uri()):
        raise OperationalError(f"no browser could be opened: open {target} yourself")


def write_plots(report: Report, html: Path | None, svg: Path | None, force: bool) -> None:
    """Write a report's page, and its charts as drawings, where they were asked for."""
    if html is not None:
        files.write_file(html, report.html(), force=force)
        wrote(html)
    if svg is not None:
        write_svg(svg, render.named(report.charts()))


def write_svg(folder: Path, found: Mapping[str, str]) -> None:
    """Write drawings into a folder that `check` made, each under its name."""
    for name, drawn in found.items():
        files.write_file(folder / f"{name}.svg", drawn)
    note(
        f"Wrote {plural(len(found), 'drawing')} into {folder}: {', '.join(f'{name}.svg' for name in found)}."
    )
