"""What an experiment found: a table, a paragraph that says what separated, curves.

An arm's score is the mean held-out accuracy over its seeds, with Student's interval. Arms are compared with
the first one seed by seed, for a seed trains all arms on the same rows: a paired t-test, corrected for the
number of arms by Holm (1979). The first arm again, with other seeds, shows how far two equal arms come apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import cutaway
from cutaway.attention.common.cost import at
from cutaway.attention.common.registry import kind
from cutaway.compare import arms
from cutaway.compare.arms import Experiment
from cutaway.compare.sweep import ArmResult
from cutaway.model.config import kind_of, to_dict
from cutaway.store.files import write
from cutaway.train.flops import per_token

LEVEL = 0.05


@dataclass(frozen=True)
class Row:
    """An arm's figures; ``p`` is Holm's, of the difference from the first arm."""

    name: str
    score: float
    low: float
    high: float
    loss: float
    difference: float
    p: float | None
    rate: float
    bound: bool
    seeds: int
    failed: int
    parameters: int
    flops_per_token: float
    state_numbers: float  # that all layers hold of a text of the task's length
    tokens_per_second: float

    @property
    def separated(self) -> bool:
        """Whether it differs from the first arm."""
        return self.p is not None and self.p < LEVEL


def rows(experiment: Experiment, results: Sequence[ArmResult]) -> list[Row]:
    """The table, an arm a row."""
    scores = [[run.accuracy for run in result.runs] for result in results]
    raw = [None, *(paired(own, scores[0]) for own in scores[1:])]
    corrected = holm([p for p in raw if p is not None])
    out = []
    for n, (result, own) in enumerate(zip(results, scores, strict=True)):
        model = arms.model_of(experiment, result.arm)
        low, high = interval(own)
        losses = [run.loss for run in result.runs]
        speeds = sorted(run.tokens_per_second for run in result.runs)
        out.append(
            Row(
                result.arm.name,
                float(np.mean(own)),
                low,
                high,
                float(np.mean(losses)),
                float(np.mean(own) - np.mean(scores[0])),
                corrected[n - 1] if n else None,
                result.rate,
                result.bound,
                len(own),
                sum(run.failed is not None for run in result.runs),
                arms.parameters(model),
                per_token(model),
                sum(
                    at(kind(kind_of(block.attention)).cost.state, block.attention, n=model.context)
                    for block in model.blocks
                ),
                speeds[len(speeds) // 2],
            )
        )
    return out


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95% interval of the mean."""
    n, center = len(values), float(np.mean(values))
    if n < 2:
        return -math.inf, math.inf
    half = quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return center - half, center + half


def paired(a: Sequence[float], b: Sequence[float]) -> float:
    """The two-sided p of the paired t-test; 1 where nothing differs, or one pair is all there is."""
    d = np.subtract(a, b)
    if len(d) < 2 or not d.any():
        return 1.0
    error = float(np.std(d, ddof=1)) / math.sqrt(len(d))
    return 0.0 if not error else tail(abs(float(d.mean())) / error, len(d) - 1)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's corrected p-values."""
    out, most = [0.0] * len(p), 0.0
    for place, n in enumerate(sorted(range(len(p)), key=lambda n: p[n])):
        most = max(most, min(1.0, (len(p) - place) * p[n]))
        out[n] = most
    return out


def tail(t: float, freedom: int) -> float:
    """The two-sided probability beyond t of Student's distribution, integrated over atan(t / sqrt n)."""
    angle = math.atan(t / math.sqrt(freedom))
    x = np.linspace(0, angle, 20001)
    inside = float(np.trapezoid(np.cos(x) ** (freedom - 1), x))
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return max(0.0, 1 - 2 * scale * inside)


def quantile(freedom: int) -> float:
    """The t beyond which 5% are."""
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, freedom) > LEVEL else (low, middle)
    return high


def paragraph(experiment: Experiment, table: Sequence[Row]) -> str:
    """What separated from the first arm, and what did not."""
    first, *others = table
    apart = [row for row in others if row.separated]
    near = [row for row in others if not row.separated]
    words = []
    for row in sorted(apart, key=lambda row: -abs(row.difference)):
        way = "above" if row.difference > 0 else "below"
        words.append(f"{row.name} is {way} {first.name} by {abs(row.difference):.3f} (p {row.p:.2g})")
    text = "; ".join(words) + "." if words else f"No arm separates from {first.name}."
    if near:
        text += f" Not separated from {first.name}: {', '.join(row.name for row in near)}."
    if bounds := [row.name for row in table if row.bound]:
        text += (
            f" The best learning rate is at the sweep's edge, a bound and no optimum: {', '.join(bounds)}."
        )
    if failed := [f"{row.name} ({row.failed} of {row.seeds})" for row in table if row.failed]:
        text += f" Runs that failed: {', '.join(failed)}."
    return f"{text} Chance is {experiment.task.chance:.3f}; intervals are of 95% over {first.seeds} seeds."


def document(experiment: Experiment, results: Sequence[ArmResult]) -> dict[str, Any]:
    """Everything, for programs."""
    table = rows(experiment, results)
    return {
        "version": cutaway.__version__,
        "hypothesis": experiment.hypothesis,
        "experiment": to_dict(experiment),
        "chance": experiment.task.chance,
        "summary": paragraph(experiment, table),
        "arms": {
            row.name: {
                "score": row.score,
                "interval": [row.low, row.high],
                "loss": row.loss,
                "difference": row.difference,
                "p": row.p,
                "learning_rate": row.rate,
                "bound": row.bound,
                "failed": row.failed,
                "params": row.parameters,
                "flops_per_token": row.flops_per_token,
                "state_numbers": row.state_numbers,
                "tokens_per_second": row.tokens_per_second,
                "scores": [run.accuracy for run in result.runs],
                "curves": [run.curve for run in result.runs],
                "sweep": {
                    f"{rate:g}": {steps: run.loss for steps, run in tried.items()}
                    for rate, tried in sorted(result.tried.items())
                },
            }
            for row, result in zip(table, results, strict=True)
        },
    }


def markdown(experiment: Experiment, table: Sequence[Row]) -> str:
    """The table and the paragraph."""
    headings = ("arm", "accuracy", "95% interval", "loss", "p", "learning rate", "parameters")
    headings += ("MFLOP/token", "state", "tokens/s")
    lines = [
        f"# {kind_of(experiment.task)}: {', '.join(row.name for row in table)}",
        f"Hypothesis: {experiment.hypothesis or 'none was written.'}",
        "",
        f"| {' | '.join(headings)} |",
        "|---" * len(headings) + "|",
    ]
    for row in table:
        p = "" if row.p is None else f"{row.p:.2g}"
        lines.append(
            f"| {row.name} | {row.score:.3f} | {row.low:.3f} to {row.high:.3f} | {row.loss:.3f} | {p} "
            f"| {row.rate:g}{' (bound)' if row.bound else ''} | {row.parameters:,} "
            f"| {row.flops_per_token / 1e6:.2f} | {row.state_numbers:,.0f} | {row.tokens_per_second:,.0f} |"
        )
    return "\n".join([*lines, "", paragraph(experiment, table), ""])


def save(experiment: Experiment, results: Sequence[ArmResult], folder: Path) -> dict[str, Any]:
    """Write results.json, report.md and report.html into a folder; the document."""
    found = document(experiment, results)
    write(folder / "results.json", json.dumps(found, indent=1))
    text = markdown(experiment, rows(experiment, results))
    write(folder / "report.md", text)
    write(folder / "report.html", _page(experiment, results, text))
    return found


def _page(experiment: Experiment, results: Sequence[ArmResult], text: str) -> str:
    """One file that needs no network: accuracy by step, loss by learning rate, the table."""
    import html

    import plotly.graph_objects as plotly
    from plotly.subplots import make_subplots

    figure = make_subplots(1, 2, subplot_titles=("held-out accuracy by step", "loss by learning rate"))
    for result in results:
        steps = [step for step, _ in result.runs[0].curve]
        means = np.mean([[value for _, value in run.curve] for run in result.runs if run.curve] or [[0.0]], 0)
        figure.add_trace(plotly.Scatter(x=steps, y=means, name=result.arm.name), 1, 1)
        ends = sorted((rate, tried.get(experiment.steps)) for rate, tried in result.tried.items())
        full = [(rate, run.loss) for rate, run in ends if run is not None]
        figure.add_trace(
            plotly.Scatter(
                x=[rate for rate, _ in full],
                y=[loss for _, loss in full],
                name=result.arm.name,
                mode="lines+markers",
                showlegend=False,
            ),
            1,
            2,
        )
    figure.add_hline(experiment.task.chance, line_dash="dot", row=1, col=1)  # type: ignore[arg-type]
    figure.update_xaxes(type="log", row=1, col=2)
    figure.update_layout(template="plotly_white", height=420)
    plot = figure.to_html(full_html=False, include_plotlyjs=True)
    title = html.escape(text.partition("\n")[0].removeprefix("# "))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        "<style>body{font:15px/1.5 system-ui;margin:2rem auto;max-width:75rem;padding:0 1rem}"
        f"pre{{overflow-x:auto}}</style><h1>{title}</h1>{plot}<pre>{html.escape(text)}</pre></html>"
    )
