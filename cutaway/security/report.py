"""The laboratory's report: a JSON document, lines for a terminal, one HTML file with its views."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cutaway
from cutaway.errors import UserError
from cutaway.evaluate.statistics import Estimate
from cutaway.page import bundle, report
from cutaway.page.charts import Axis, Bar, Bars, Plot, Series
from cutaway.security.finding import FEWEST, Arm, Curve, Finding, Look
from cutaway.store.files import write_file
from cutaway.store.reading import parsed

if TYPE_CHECKING:
    from cutaway.lm import LanguageModel

COLORS = ("attack", "benign", "control", "defence")  # roles, in the order of the colours of series
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


def read_findings(document: dict[str, Any]) -> list[Finding]:
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
        others = read_findings(known) if same else []
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
    write_file(
        folder / "results.json", json.dumps(document(model, whole, seed=seed, trials=trials), indent=1)
    )
    write_file(folder / "report.html", page(model, whole, lm))


def page(model: str, findings: Sequence[Finding], lm: LanguageModel) -> str:
    """One file that needs no network: a table, each finding with its curves, and the model's inside.

    A finding's look opens the explain view at its token, in a frame that can touch nothing outside.
    """
    from cutaway.inspect.page import sources

    rows = "".join(
        f'<tr><td>{html.escape(f.probe)}<td><a href="#finding-{n}">{html.escape(f.title)}</a>'
        f'<td class="{_verdict(f)}">{f.verdict}<td>{html.escape(_value(f.arms[0]))}'
        for n, f in enumerate(findings)
    )
    head = "<tr><th>probe<th>finding<th>verdict<th>first arm, 95%"
    parts: list[report.Part] = [
        report.Html(
            '<div class="wide" tabindex="0" role="region" aria-label="Findings">'
            f"<table>{head}{rows}</table></div>"
        )
    ]
    for n, finding in enumerate(findings):
        parts += _section(n, finding, lm)
    return report.html(f"Security of {model}", parts, frames=sources())


def _section(n: int, finding: Finding, lm: LanguageModel) -> Iterator[report.Part]:
    verdict = f'<span class="verdict {_verdict(finding)}">{finding.verdict}</span>'
    heading = f'<section id="finding-{n}"><h2>{html.escape(finding.title)} {verdict}</h2>'
    yield report.Html(f"{heading}<p>{html.escape(finding.summary)}</p>")
    for unit in dict.fromkeys(arm.unit for arm in finding.arms):
        yield _arms([arm for arm in finding.arms if arm.unit == unit], unit)
    if finding.mechanism:
        items = "".join(f"<li>{html.escape(sentence)}" for sentence in finding.mechanism)
        yield report.Html(f"<h3>Mechanism</h3><ul>{items}</ul>")
    for look in finding.look:
        summary = f"<summary>Open the model at this token: {html.escape(look.note)}</summary>"
        yield report.Html(f"<details>{summary}{_view(lm, look)}</details>")
    if finding.curves:
        yield _plot(finding.curves)
    yield report.Html(f'<p class="quiet">{html.escape(_budget(finding))}</p></section>')


def _verdict(finding: Finding) -> str:
    return finding.verdict.split()[0]


def _arms(arms: Sequence[Arm], unit: str) -> Bars:
    """The arms of one unit, each with its interval; what is a share is drawn from 0 to 1."""
    share = unit in ("rate", "AUROC", "AUC") and all(arm.value.low >= 0 for arm in arms)
    ends = (0.0, 1.0) if share else (None, None)
    lows = [max(arm.value.low, 0.0) if share else arm.value.low for arm in arms]
    highs = [min(arm.value.high, 1.0) if share else arm.value.high for arm in arms]
    bar = Bar("", [arm.value.value for arm in arms], lows, highs)
    return Bars(
        "Arms",
        Axis(unit, "95% interval", low=ends[0], high=ends[1]),
        "arm",
        [f"{arm.name} ({arm.role}, n {arm.value.n})" for arm in arms],
        [bar],
        dots=True,
        colors=[COLORS.index(arm.role) if arm.role in COLORS else len(COLORS) for arm in arms],
    )


def _value(arm: Arm) -> str:
    value, unit = arm.value, "" if arm.unit == "rate" else f" {arm.unit}"
    return f"{value.value:.3f} ({value.between()}){unit}"


def _view(lm: LanguageModel, look: Look) -> str:
    """The explain view, open at a token, a layer and a head."""
    from cutaway.inspect import page, page_data

    at = {"token": look.position, "layer": look.layer, "head": look.head}
    start = {name: value for name, value in at.items() if value is not None}
    trace = lm.trace(look.ids, names=page_data.names(lm.config))
    shown = page_data.build(trace, str(lm.checkpoint.source))
    return bundle.frame(page.page([shown], start=start))


def _plot(curves: Sequence[Curve]) -> Plot:
    series = [
        Series(curve.name, [x for x, _ in curve.points], [y for _, y in curve.points], points=True)
        for curve in curves
    ]
    title = f"{curves[0].y} by {curves[0].x}"
    values = [y for one in series for y in one.y]
    low, high = (0.0 if min(values, default=0.0) >= 0 else None), (None if any(values) else 1.0)
    return Plot(
        title[:1].upper() + title[1:], Axis(curves[0].x), Axis(curves[0].y, low=low, high=high), series
    )
