"""An SVG as it is drawn: shapes and texts by their roles, whose colours are those of style.css.

Colours are written as plain values, light ones and dark ones, since programs that edit SVG know no variables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from cutaway.errors import escaped

STYLE = Path(__file__).parent.parent / "style.css"
SANS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue','Liberation Sans',Arial,sans-serif"
MONO = "ui-monospace,'SF Mono',Menlo,Consolas,'DejaVu Sans Mono',monospace"
SERIES = 6
FONT = 12
NARROW, THIN, WIDE = "ijl|!.,:;'`I", 'ftr()[]{}-"/ ', "mwMW@%—"
MARGIN = 12


@cache
def colours() -> tuple[dict[str, str], dict[str, str]]:
    """The colours of the page by their names, light and dark."""
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\);", STYLE.read_text("utf-8"))
    return {name: light for name, light, _ in pairs}, {name: dark for name, _, dark in pairs}


def text_width(text: str, size: float = FONT) -> float:
    """About how wide a text is in pixels, by the kinds of its letters."""
    return size * sum(_letter(c) for c in text)


def _letter(c: str) -> float:
    if c in NARROW:
        return 0.28
    if c in THIN:
        return 0.36
    if c in WIDE:
        return 0.86
    if ord(c) > 0x2E7F:
        return 1.0
    return 0.68 if c.isupper() else 0.56


class Drawing:
    """What is drawn on a sheet of ``width`` and ``height`` pixels; ``title`` is read out in its place."""

    def __init__(self, title: str, width: float, height: float = 0, about: str = "") -> None:
        self.title, self.about, self.width, self.height = title, about, width, height
        self.parts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        text: str,
        role: str = "quiet",
        *,
        anchor: str = "start",
        size: float = FONT,
        mono: bool = False,
        bold: bool = False,
        turn: float = 0,
    ) -> None:
        """A text on the line of y. ``turn``: degrees, around its begin."""
        more = "" if anchor == "start" else f' text-anchor="{anchor}"'
        more += "" if size == FONT else f' font-size="{_short(size)}"'
        more += f' transform="rotate({_short(turn)} {_short(x)} {_short(y)})"' if turn else ""
        kinds = " ".join([f"f-{role}", *(["mono"] if mono else []), *(["bold"] if bold else [])])
        shown = escape(escaped(text))
        self.parts.append(f'<text class="{kinds}" x="{_short(x)}" y="{_short(y)}"{more}>{shown}</text>')

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        role: str,
        *,
        opacity: float = 1,
        radius: float = 0,
        border: str = "",
        tip: str = "",
    ) -> None:
        """A filled rectangle; ``tip`` is shown where a browser's pointer rests on it."""
        more = f' rx="{_short(radius)}"' if radius else ""
        more += f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
        kinds = f"f-{role}" + (f" s-{border}" if border else "")
        sides = f'x="{_short(x)}" y="{_short(y)}" width="{_short(width)}" height="{_short(height)}"'
        end = f"><title>{escape(escaped(tip))}</title></rect>" if tip else "/>"
        self.parts.append(f'<rect class="{kinds}" {sides}{more}{end}')

    def path(
        self,
        d: str,
        role: str,
        *,
        width: float = 1,
        dash: str = "",
        filled: bool = False,
        opacity: float = 1,
        arrow: bool = False,
    ) -> None:
        """A line along ``d``, or the area in it."""
        more = f' stroke-width="{_short(width)}"' if width != 1 and not filled else ""
        more += f' stroke-dasharray="{dash}"' if dash else ""
        more += f' opacity="{opacity:.2f}"' if opacity < 1 else ""
        more += ' marker-end="url(#arrow)"' if arrow else ""
        kind = f"f-{role}" if filled else f"none s-{role}"
        self.parts.append(f'<path class="{kind}" d="{d}"{more}/>')

    def line(self, points: Sequence[tuple[float, float]], role: str, **how: float | str | bool) -> None:
        """A line through points."""
        steps = "".join(f"{'L' if k else 'M'}{_short(x)} {_short(y)}" for k, (x, y) in enumerate(points))
        self.path(steps, role, **how)  # type: ignore[arg-type]

    def circle(self, x: float, y: float, radius: float, role: str, border: str = "paper") -> None:
        """A filled circle."""
        place = f'cx="{_short(x)}" cy="{_short(y)}" r="{_short(radius)}"'
        self.parts.append(f'<circle class="f-{role} s-{border}" {place}/>')

    def __str__(self) -> str:
        """The file."""
        width, height = self.width + 2 * MARGIN, self.height + 2 * MARGIN
        body = "\n".join(self.parts)
        marker = (
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path class="f-quiet" d="M0 0L8 4L0 8Z"/></marker></defs>\n'
        )
        described = f"<desc>{escape(escaped(self.about))}</desc>" if self.about else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-MARGIN} {-MARGIN} {_short(width)} '
            f'{_short(height)}" width="{_short(width)}" height="{_short(height)}" role="img" '
            f"aria-label={quoteattr(escaped(self.title))}>\n"
            f"<title>{escape(escaped(self.title))}</title>{described}\n<style>{_style(body)}</style>\n"
            f"{marker if 'url(#arrow)' in body else ''}"
            f'<rect class="f-paper" x="{-MARGIN}" y="{-MARGIN}" width="100%" height="100%" rx="6"/>\n'
            f"{body}\n</svg>\n"
        )


def _style(body: str) -> str:
    """The rules of the roles that are used."""
    used = {*re.findall(r"[fs]-[\w-]+", " ".join(re.findall(r'class="([^"]*)"', body))), "f-paper"}
    if "url(#arrow)" in body:
        used.add("f-quiet")
    light, dark = colours()
    rules = [
        "".join(f".{one}{{{'fill' if one[0] == 'f' else 'stroke'}:{of[one[2:]]}}}" for one in sorted(used))
        for of in (light, dark)
    ]
    own = f"text{{font:{FONT}px {SANS}}}.mono{{font-family:{MONO}}}.bold{{font-weight:600}}.none{{fill:none}}"
    return f"{own}{rules[0]}@media (prefers-color-scheme:dark){{{rules[1]}}}"


def _short(value: float) -> str:
    """A number with a digit behind the point at most."""
    return f"{value:.1f}".removesuffix(".0")
