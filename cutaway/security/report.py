"""What the laboratory found: a JSON document, lines for a terminal, one HTML file with the views inside."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import cutaway
from cutaway.evaluate import html_report
from cutaway.security import Arm, Curve, Finding, Look

if TYPE_CHECKING:
    from cutaway.lm import LanguageModel

STYLE = """.vulnerable{color:light-dark(#b00020,#ff8a80)}.sound{color:light-dark(#1b6e3a,#7bd69a)}
pre{white-space:pre-wrap}iframe{width:100%;height:800px;border:0}"""


def document(model: str, findings: Sequence[Finding], *, seed: int, trials: int) -> dict[str, Any]:
    """Everything, for programs. A probe's rate is its first finding's first arm."""
    probes: dict[str, Any] = {}
    for finding in findings:
        entry = probes.setdefault(finding.probe, {**_figure(finding.arms[0]), "findings": []})
        entry["findings"].append(_plain(finding))
    for entry in probes.values():
        verdicts = [one["verdict"] for one in entry["findings"]]
        entry["verdict"] = next(
            (v for v in ("vulnerable", "not separated", "not enough trials") if v in verdicts), "sound"
        )  # the worst of them
    return {
        "version": cutaway.__version__,
        "model": model,
        "seed": seed,
        "trials": trials,
        "probes": probes,
    }


def _figure(arm: Arm) -> dict[str, Any]:
    low, high = (None if math.isinf(x) else x for x in (arm.value.low, arm.value.high))
    return {"rate": arm.value.value, "interval": [low, high], "n": arm.value.n}


def _plain(finding: Finding) -> dict[str, Any]:
    arms = [{"name": arm.name, "role": arm.role, "unit": arm.unit, **_figure(arm)} for arm in finding.arms]
    return {**asdict(finding), "arms": arms}


def lines(finding: Finding) -> list[str]:
    """The finding in plain text: the verdict, each arm with its interval, the mechanism."""
    chance = "" if finding.chance is None else f"; chance {finding.chance:.3g}"
    out = [f"{finding.probe}: {finding.title}: {finding.verdict}", f"  {finding.summary}"]
    out += [f"  {_words(arm)}" for arm in finding.arms]
    out += [f"  {curve.name}: {_curve_words(curve)}" for curve in finding.curves]
    out += [f"  mechanism: {sentence}" for sentence in finding.mechanism]
    seeds = ", ".join(map(str, finding.seeds))
    out.append(f"  seeds {seeds}; {finding.attempts} attempts a case{chance}; {finding.seconds:.1f} s")
    return out


def _words(arm: Arm) -> str:
    value = arm.value
    unit = "" if arm.unit == "rate" else f" {arm.unit}"
    return (
        f"{arm.name} ({arm.role}): {value.value:.3f}{unit}, 95% {value.low:.3f} to {value.high:.3f}, "
        f"n {value.n}"
    )


def _curve_words(curve: Curve) -> str:
    return f"{curve.y} at {curve.x}: " + ", ".join(f"{y:.2f} at {x:.2f}" for x, y in curve.points)


def page(model: str, findings: Sequence[Finding], lm: LanguageModel) -> str:
    """One file that needs no network: a table, each finding with its curves, and the model's inside.

    A finding's look opens the explain view at its token, in a frame that can touch nothing outside.
    """
    title = f"Security of {model}"
    rows = "".join(
        f'<tr><td>{html.escape(f.probe)}<td>{html.escape(f.title)}<td class="{f.verdict.split()[0]}">'
        f"{f.verdict}<td>{html.escape(_words(f.arms[0]))}<td>{f.seconds:.1f} s"
        for f in findings
    )
    first = next((f for f in findings if f.curves), None)
    parts = [_section(finding, lm, plotly=finding is first) for finding in findings]
    table = f"<table><tr><th>probe<th>finding<th>verdict<th>first arm<th>time{rows}</table>"
    return html_report.document(title, table + "".join(parts), STYLE)


def _section(finding: Finding, lm: LanguageModel, plotly: bool) -> str:
    text = html.escape("\n".join(lines(finding)[1:]))
    parts = [f"<h2>{html.escape(finding.title)}</h2><pre>{text}</pre>"]
    if finding.curves:
        parts.append(_plot(finding.curves, plotly))
    for look in finding.look:
        parts.append(f"<details><summary>{html.escape(look.note)}</summary>{_view(lm, look)}</details>")
    return "".join(parts)


def _view(lm: LanguageModel, look: Look) -> str:
    """The explain view, open at a token, a layer and a head."""
    from cutaway.inspect import page, page_data

    at = {"token": look.position, "layer": look.layer, "head": look.head}
    start = {name: value for name, value in at.items() if value is not None}
    trace = lm.trace(look.ids, names=page_data.names(lm.definition.model))
    shown = page_data.build(trace, str(lm.checkpoint.source))
    return page.frame(page.page([shown], start=start), 800)


def _plot(curves: Sequence[Curve], script: bool) -> str:
    import plotly.graph_objects as plotly

    figure = plotly.Figure()
    for curve in curves:
        x, y = zip(*curve.points, strict=True)
        figure.add_trace(plotly.Scatter(x=x, y=y, name=curve.name, mode="lines+markers"))
    figure.update_layout(
        template="plotly_white", height=380, xaxis_title=curves[0].x, yaxis_title=curves[0].y
    )
    return figure.to_html(full_html=False, include_plotlyjs=script)
