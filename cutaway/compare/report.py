"""What an experiment found: a table, a paragraph that says what separated, curves, and where arms look.

An arm's score is the mean held-out accuracy (or bits per byte) over its seeds, with Student's interval. Arms
are compared with the first one seed by seed, for a seed trains all arms on the same rows: a paired t-test,
corrected for the number of arms by Holm. The first arm again, with other seeds, shows how far two equal arms
come apart.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import cutaway
from cutaway.attention.common.cost import at
from cutaway.attention.common.registry import kind
from cutaway.compare import arms
from cutaway.compare.arms import Experiment
from cutaway.compare.sweep import CURVES, ArmResult, Measured
from cutaway.evaluate import html_report
from cutaway.evaluate.statistics import holm, paired_t, student
from cutaway.hooks import tracing
from cutaway.inspect.inputs import has_pattern
from cutaway.model.config import Decoder, kind_of, to_dict
from cutaway.store.files import write
from cutaway.train.flops import per_token

EXPERIMENT = "experiment.yaml"
COMMAND = f"cutaway compare {EXPERIMENT}"
LEVEL = 0.05
LONGER = (1, 4, 16, 64)  # times the task's length, for growth with n
COLORS = ("#4c78a8", "#e4572e", "#2ca02c", "#b279a2", "#d4a017", "#17becf", "#8c564b", "#e377c2")  # of arms
SHOWN = 96  # tokens of the text on which arms' attention is shown


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
    growth: dict[int, float]  # numbers that all layers hold of a text, by its length
    tokens_per_second: float

    @property
    def separated(self) -> bool:
        """Whether it differs from the first arm."""
        return self.p is not None and self.p < LEVEL

    @property
    def state_numbers(self) -> float:
        """Numbers that all layers hold of a text of the task's length."""
        return next(iter(self.growth.values()))


def rows(experiment: Experiment, results: Sequence[ArmResult]) -> list[Row]:
    """The table, an arm a row."""
    scores = [[run.score for run in result.runs] for result in results]
    raw = [None, *(paired_t(own, scores[0]) for own in scores[1:])]
    corrected = holm([p for p in raw if p is not None])
    out = []
    for n, (result, own) in enumerate(zip(results, scores, strict=True)):
        model = arms.model_of(experiment, result.arm)
        low, high = student(own)
        speeds = sorted(run.tokens_per_second for run in result.runs)
        length = experiment.task.context
        out.append(
            Row(
                result.arm.name,
                float(np.mean(own)),
                low,
                high,
                float(np.mean([run.loss for run in result.runs])),
                float(np.mean(own) - np.mean(scores[0])),
                corrected[n - 1] if n else None,
                result.rate,
                result.bound,
                len(own),
                sum(run.failed is not None for run in result.runs),
                arms.parameters(model),
                per_token(model),
                {times * length: _state(model, times * length) for times in LONGER},
                speeds[len(speeds) // 2],
            )
        )
    return out


def _state(model: Decoder, n: int) -> float:
    """How many numbers all layers hold of n tokens."""
    mixers = [block.attention for block in model.blocks]
    return sum(at(kind(kind_of(mixer)).cost.state, mixer, n=n) for mixer in mixers)


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
    oracle = "" if experiment.task.oracle is None else f", the oracle {experiment.task.oracle:.3f}"
    score = "Lower is better. " if experiment.task.metric == "bits_per_byte" else ""
    return (
        f"{text} {score}Chance is {experiment.task.chance:.3f}{oracle}; intervals are of 95% over "
        f"{first.seeds} seeds."
    )


def document(experiment: Experiment, results: Sequence[ArmResult]) -> dict[str, Any]:
    """Everything, for programs."""
    table = rows(experiment, results)
    looks = {result.arm.name: attention_on(experiment, result.runs[0]) for result in results}
    return {
        "command": COMMAND,
        "versions": _versions(),
        "hypothesis": experiment.hypothesis,
        "experiment": to_dict(experiment),
        "metric": experiment.task.metric,
        "chance": experiment.task.chance,
        "oracle": experiment.task.oracle,
        "summary": paragraph(experiment, table),
        "attention": {name: heads for name, heads in looks.items() if heads},
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
                "state_bytes_per_token": 4 * row.state_numbers / experiment.task.context,
                "state_by_length": row.growth,
                "tokens_per_second": row.tokens_per_second,
                "scores": [run.score for run in result.runs],
                "runs": ["/".join(run.folder.parts[-2:]) for run in result.runs],
                "curves": [run.curves for run in result.runs],
                "sweep": {
                    f"{rate:g}": {steps: run.loss for steps, run in tried.items()}
                    for rate, tried in sorted(result.tried.items())
                },
            }
            for row, result in zip(table, results, strict=True)
        },
    }


def _versions() -> dict[str, str]:
    return {
        "cutaway": cutaway.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def markdown(experiment: Experiment, table: Sequence[Row]) -> str:
    """The table and the paragraph."""
    score = experiment.task.metric.replace("_", " ")
    headings = ("arm", score, "95% interval", "loss", "p", "learning rate", "parameters")
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
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    return "\n".join([*lines, "", paragraph(experiment, table), "", f"`{COMMAND}`: {versions}.", ""])


def save(experiment: Experiment, results: Sequence[ArmResult], folder: Path) -> dict[str, Any]:
    """Write experiment.yaml, results.json, report.md and report.html into a folder; the document."""
    found = document(experiment, results)
    write(folder / EXPERIMENT, yaml.safe_dump(to_dict(experiment), sort_keys=False))
    write(folder / "results.json", json.dumps(found, indent=1))
    text = markdown(experiment, rows(experiment, results))
    write(folder / "report.md", text)
    write(folder / "report.html", _page(experiment, results, found, text))
    return found


def attention_on(experiment: Experiment, run: Measured) -> dict[str, list[float]]:
    """By layer and head, the attention weights of the last scored token of the first held-out row.

    Empty for a run that failed, or a model with a layer that has none.
    """
    if run.failed is not None:
        return {}
    model = cutaway.load(run.folder, engine="definition").model
    if not all(has_pattern(block.attention) for block in model.config.blocks):
        return {}
    row = arms.Rows(experiment.task.held_out, arms.number(0, "held out"), 1).row(0)
    scored = np.flatnonzero(row.loss_weights[0, :SHOWN])
    stop = int(scored[-1]) + 1 if len(scored) else SHOWN
    ids, pos = (torch.from_numpy(array[:, :stop]) for array in (row.ids, row.pos))
    with torch.no_grad(), tracing(model, "*.pattern") as seen:
        model(ids, pos)
    return {
        f"{layer}.{head}": [round(value, 4) for value in weights[-1].tolist()]
        for layer in range(len(model.blocks))
        for head, weights in enumerate(seen[f"blocks.{layer}.attention.pattern"][0])
    }


def _page(experiment: Experiment, results: Sequence[ArmResult], found: dict[str, Any], text: str) -> str:
    """One file that needs no network: the report, curves, sweeps, prices, where arms look, and the data."""
    import plotly.graph_objects as plotly

    metric = experiment.task.metric
    colors = {result.arm.name: COLORS[n % len(COLORS)] for n, result in enumerate(results)}
    ends = {
        result.arm.name: [
            (rate, tried[experiment.steps].loss)
            for rate, tried in sorted(result.tried.items())
            if experiment.steps in tried
        ]
        for result in results
    }
    arms_found = found["arms"]
    curves: list[tuple[str, str, str, dict[str, list[tuple[Any, float]]]]] = [
        (
            f"held-out {metric.replace('_', ' ')} by step",
            "linear",
            "linear",
            {one.arm.name: _mean(one.runs, metric) for one in results},
        ),
        ("loss of the first seed by learning rate", "log", "linear", ends),
        (
            f"{metric.replace('_', ' ')} by numbers of state",
            "log",
            "linear",
            {name: [(arm["state_numbers"], arm["score"])] for name, arm in arms_found.items()},
        ),
        (
            "numbers of state by length",
            "log",
            "log",
            {name: list(arm["state_by_length"].items()) for name, arm in arms_found.items()},
        ),
    ]
    for name in CURVES[-2:]:
        own = {one.arm.name: _mean(one.runs, name) for one in results}
        curves.append((f"strongest {name.replace('_', '-')} head by step", "linear", "linear", own))
    made: list[tuple[str, str]] = []
    for title, across, up, lines in curves:
        if not any(lines.values()):
            continue
        figure = plotly.Figure()
        for name, points in lines.items():
            x, y = [x for x, _ in points], [y for _, y in points]
            figure.add_trace(
                plotly.Scatter(x=x, y=y, name=name, mode="lines+markers", marker_color=colors[name])
            )
        if not made:
            figure.add_hline(experiment.task.chance, line_dash="dot", line_color="#808080")  # type: ignore[arg-type]
        figure.update_xaxes(type=across)
        figure.update_yaxes(type=up)
        made.append((title, html_report.plot(figure, script=not made, showlegend=False)))
    looks = []
    for name, heads in found["attention"].items():
        image = plotly.Heatmap(z=list(heads.values()), y=list(heads), zmin=0, zmax=1, colorscale="Viridis")
        figure = plotly.Figure(image)
        figure.update_yaxes(type="category")
        looks.append((name, html_report.plot(figure, script=False, height=80 + 22 * len(heads))))
    legend = "".join(
        f'<span style="color:{color}">\u25cf</span> {escape(name)} ' for name, color in colors.items()
    )
    title, _, rest = text.partition("\n")
    body = html_report.rendered(rest) + f"<p>{legend}</p>" + html_report.plots(made)
    if looks:
        body += (
            "<h2>Where each arm looks</h2><p>Attention weights of the last scored token by layer and head, "
            f"on one text.</p>{html_report.plots(looks)}"
        )
    body += html_report.data(json.dumps(found, indent=1))
    return html_report.document(title.removeprefix("# "), body)


def _mean(runs: Sequence[Measured], name: str) -> list[tuple[int, float]]:
    """A curve's mean over runs, step by step."""
    found = [run.curves[name] for run in runs if name in run.curves]
    if not found:
        return []
    return [(step, float(np.mean([curve[n][1] for curve in found]))) for n, (step, _) in enumerate(found[0])]
