"""What the laboratory found: a JSON document, lines for a terminal, one HTML file with the views inside."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cutaway
from cutaway.errors import UserError
from cutaway.evaluate import html_report
from cutaway.evaluate.statistics import Estimate
from cutaway.security import FEWEST, Arm, Curve, Finding, Look
from cutaway.store.files import write
from cutaway.store.reading import parsed

if TYPE_CHECKING:
    from cutaway.lm import LanguageModel

STYLE = """body{max-width:64rem}a{color:inherit}
.vulnerable{color:light-dark(#b00020,#ff8a80)}.sound{color:light-dark(#1b6e3a,#7bd69a)}
.quiet,.not{color:light-dark(#5f5a52,#a8a196)}
td,th{overflow-wrap:normal}
section{border-top:1px solid light-dark(#ddd,#444);margin-top:2.5rem}
h2{margin:1.2rem 0 .3rem}h2 span{font-size:.7em;font-weight:400;margin-left:.6em}
.bar{display:block;width:9rem;height:1.4em}.bar line{stroke:currentColor}.bar circle{fill:currentColor}
.attack{color:light-dark(#b93d12,#ff9166)}.control{color:light-dark(#5f5a52,#a8a196)}
.benign{color:light-dark(#2f6690,#7db4e0)}.defence{color:light-dark(#1b6e3a,#7bd69a)}
summary{cursor:pointer;padding:.5rem 0}iframe{width:100%;height:800px;border:0}
@media(max-width:45rem){
tr{display:grid;grid-template-columns:6rem 1fr auto;padding:.35rem 0}td{padding:0 .4rem 0 0}
tr:first-child,.arms td:nth-child(3),.found td:first-child{display:none}
.arms td:first-child,.found td:nth-child(2){grid-column:1/-1}
.arms td:last-child::before{content:"n "}}"""


NEEDS = f'"vulnerable" needs {FEWEST} cases or more that succeed, "sound" 60 or more that do not'


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
    return {"rate": arm.value.value, "interval": arm.value.ends, "n": arm.value.n}


def _plain(finding: Finding) -> dict[str, Any]:
    arms = [{"name": arm.name, "role": arm.role, "unit": arm.unit, **_figure(arm)} for arm in finding.arms]
    return {**asdict(finding), "arms": arms}


def lines(finding: Finding) -> list[str]:
    """The finding in plain text: the verdict, each arm with its interval, the mechanism."""
    needs = f" ({NEEDS})" if finding.verdict == "not enough trials" else ""
    out = [f"{finding.probe}: {finding.title}: {finding.verdict}{needs}", f"  {finding.summary}"]
    out += [f"  {_words(arm)}" for arm in finding.arms]
    out += [f"  {curve.name}: {_curve_words(curve)}" for curve in finding.curves]
    out += [f"  mechanism: {sentence}" for sentence in finding.mechanism]
    out.append(f"  {_budget(finding)}")
    return out


def _budget(finding: Finding) -> str:
    seeds = ", ".join(map(str, finding.seeds))
    chance = "" if finding.chance is None else f"; chance {finding.chance:.3g}"
    tries = f"{finding.attempts} attempt{'s' * (finding.attempts != 1)} a case"
    return f"seeds {seeds}; {tries}{chance}; the probe took {finding.seconds:.1f} s"


def _words(arm: Arm) -> str:
    value = arm.value
    unit = "" if arm.unit == "rate" else f" {arm.unit}"
    return f"{arm.name} ({arm.role}): {value.value:.3f}{unit}, 95% {value.between()}, n {value.n}"


def _curve_words(curve: Curve) -> str:
    return f"{curve.y} at {curve.x}: " + ", ".join(f"{y:.2f} at {x:.2f}" for x, y in curve.points)


def read(document: dict[str, Any]) -> list[Finding]:
    """The findings of a document; standard errors, which no report shows, are not in it."""
    found = []
    for entry in document["probes"].values():
        for one in entry["findings"]:
            curves = [{**curve, "points": tuple(map(tuple, curve["points"]))} for curve in one["curves"]]
            parts = {
                "arms": tuple(_arm(arm) for arm in one["arms"]),
                "curves": tuple(Curve(**curve) for curve in curves),
                "look": tuple(Look(**{**look, "ids": tuple(look["ids"])}) for look in one["look"]),
                "seeds": tuple(one["seeds"]),
                "mechanism": tuple(one["mechanism"]),
            }
            found.append(Finding(**{**one, **parts}))
    return found


def _arm(arm: dict[str, Any]) -> Arm:
    low, high = arm["interval"]
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    return Arm(arm["name"], Estimate(arm["rate"], math.nan, low, high, arm["n"]), arm["role"], arm["unit"])


def kept(path: Path, model: str, findings: Sequence[Finding]) -> list[Finding]:
    """These findings, and those of other probes on the same model that a document of this version has.

    UserError for another document.
    """
    if not path.is_file():
        return list(findings)
    try:
        known = parsed(path)
        same = (known["model"], known["version"]) == (model, cutaway.__version__)
        others = read(known) if same else []
    except (UserError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"{path} is not a report of cutaway attack: choose another folder with --output"
        ) from None
    own = {finding.probe for finding in findings}
    others = [finding for finding in others if finding.probe not in own]
    return sorted([*others, *findings], key=lambda finding: finding.probe)


def add(
    folder: Path, model: str, findings: Sequence[Finding], lm: LanguageModel, *, seed: int, trials: int
) -> None:
    """Write the folder's results.json and report.html, with these findings and those that it has."""
    whole = kept(folder / "results.json", model, findings)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "results.json", json.dumps(document(model, whole, seed=seed, trials=trials), indent=1))
    write(folder / "report.html", page(model, whole, lm))


def page(model: str, findings: Sequence[Finding], lm: LanguageModel) -> str:
    """One file that needs no network: a table, each finding with its curves, and the model's inside.

    A finding's look opens the explain view at its token, in a frame that can touch nothing outside.
    """
    title = f"Security of {model}"
    rows = "".join(
        f'<tr><td>{html.escape(f.probe)}<td><a href="#finding-{n}">{html.escape(f.title)}</a>'
        f'<td class="{f.verdict.split()[0]}">{f.verdict}<td>{html.escape(_value(f.arms[0]))}'
        for n, f in enumerate(findings)
    )
    first = next((f for f in findings if f.curves), None)
    parts = [_section(n, finding, lm, plotly=finding is first) for n, finding in enumerate(findings)]
    table = f'<table class="found"><tr><th>probe<th>finding<th>verdict<th>first arm, 95%{rows}</table>'
    return html_report.document(title, table + "".join(parts), STYLE)


def _section(n: int, finding: Finding, lm: LanguageModel, plotly: bool) -> str:
    verdict = f'<span class="{finding.verdict.split()[0]}">{finding.verdict}</span>'
    arms = "".join(
        f'<tr><td>{html.escape(arm.name)}<td class="{arm.role}">{arm.role}<td>{_bar(arm)}'
        f"<td>{html.escape(_value(arm))}<td>{arm.value.n}"
        for arm in finding.arms
    )
    parts = [
        f'<section id="finding-{n}"><h2>{html.escape(finding.title)} {verdict}</h2>',
        f"<p>{html.escape(finding.summary)}</p>",
        f'<table class="arms"><tr><th>arm<th>role<th><th>value, 95%<th>n{arms}</table>',
    ]
    if finding.mechanism:
        items = "".join(f"<li>{html.escape(sentence)}" for sentence in finding.mechanism)
        parts.append(f"<h3>Mechanism</h3><ul>{items}</ul>")
    for look in finding.look:
        parts.append(
            f"<details><summary>Open the model at this token: {html.escape(look.note)}</summary>"
            f"{_view(lm, look)}</details>"
        )
    if finding.curves:
        parts.append(_plot(finding.curves, plotly))
    parts.append(f'<p class="quiet">{html.escape(_budget(finding))}</p></section>')
    return "".join(parts)


def _value(arm: Arm) -> str:
    value, unit = arm.value, "" if arm.unit == "rate" else f" {arm.unit}"
    return f"{value.value:.3f} ({value.between()}){unit}"


def _bar(arm: Arm) -> str:
    """The interval between 0 and 1, for what is a share."""
    if arm.unit not in ("rate", "AUROC", "AUC") or arm.value.low < 0:
        return ""
    low, value, high = (100 * min(max(x, 0), 1) for x in (arm.value.low, arm.value.value, arm.value.high))
    return (
        f'<svg class="bar {arm.role}" viewBox="-4 0 108 14" preserveAspectRatio="none" aria-hidden="true">'
        f'<line x1="0" x2="100" y1="7" y2="7" stroke-opacity="0.2"/>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="7" y2="7" stroke-width="3"/>'
        f'<circle cx="{value:.1f}" cy="7" r="4"/></svg>'
    )


def _view(lm: LanguageModel, look: Look) -> str:
    """The explain view, open at a token, a layer and a head."""
    from cutaway.inspect import page, page_data

    at = {"token": look.position, "layer": look.layer, "head": look.head}
    start = {name: value for name, value in at.items() if value is not None}
    trace = lm.trace(look.ids, names=page_data.names(lm.config))
    shown = page_data.build(trace, str(lm.checkpoint.source))
    return page.frame(page.page([shown], start=start), 800)


def _plot(curves: Sequence[Curve], script: bool) -> str:
    import plotly.graph_objects as plotly

    figure = plotly.Figure()
    for curve in curves:
        x, y = zip(*curve.points, strict=True)
        figure.add_trace(plotly.Scatter(x=x, y=y, name=curve.name, mode="lines+markers"))
    figure.update_xaxes(title=curves[0].x)
    figure.update_yaxes(title=curves[0].y)
    return html_report.plot(figure, script=script, height=380, legend={"orientation": "h", "y": -0.25})
