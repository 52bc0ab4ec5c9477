"""What an experiment found: a table, a paragraph that says what separated, curves, and where arms look.

An arm's score is the mean held-out accuracy (or bits per byte) over its seeds, with Student's interval. Arms
are compared with the first one seed by seed, for a seed trains all arms on the same rows: a paired t-test,
corrected for the number of arms by Holm. The first arm again, with other seeds, shows how far two equal arms
come apart.
"""

from __future__ import annotations

import json
import math
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from cutaway.evaluate.statistics import holm, paired_t, student
from cutaway.hooks import tracing
from cutaway.inspect.inputs import has_pattern
from cutaway.model.config import Decoder, EncoderDecoder
from cutaway.model.config_dict import to_dict
from cutaway.model.kinds import kind_of
from cutaway.page import report
from cutaway.page.charts import Axis, Bar, Bars, Heat, Labels, Plot, Series
from cutaway.store.files import disk_errors, write_file
from cutaway.train.trainable import SOURCE

EXPERIMENT = "experiment.yaml"
LEVEL = 0.05
LONGER = (1, 4, 16, 64)  # times the task's length, for growth with n
SHOWN = 96  # tokens of the text on which arms' attention is shown
OUTLIER_SEEDS = 5  # seeds from which an outlier can be named
SHOWN_APART = 0.05  # nearer to the others than this no seed is one, however alike the others are


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
    scores: tuple[float, ...]  # of each seed
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
    def seeds(self) -> int:
        return len(self.scores)

    @property
    def outliers(self) -> list[float]:
        """Scores far from the other seeds': modified z-scores above 3.5 (Iglewicz and Hoaglin, 1993).

        Of fewer than five seeds none can be named. What the table's digits hardly show is none either.
        """
        if self.seeds < OUTLIER_SEEDS:
            return []
        apart = np.abs(np.subtract(self.scores, np.median(self.scores)))
        far = apart > max(SHOWN_APART, 3.5 * np.median(apart) / 0.6745)
        return np.array(self.scores)[far].tolist()

    @property
    def judged(self) -> bool:
        """Whether there is an interval: not of one seed, nor of unbounded scores that are all equal."""
        return self.seeds > 1 and math.isfinite(self.low)

    @property
    def state_numbers(self) -> float:
        """Numbers that all layers hold of a text of the task's length."""
        return next(iter(self.growth.values()))


def rows(experiment: Experiment, results: Sequence[ArmResult]) -> list[Row]:
    """The table, an arm a row."""
    scores = [[run.score for run in result.runs] for result in results]
    corrected: list[float | None] = [None] * len(scores)
    if len(scores[0]) > 1:  # of one seed no difference can be judged
        corrected[1:] = holm([paired_t(own, scores[0]) for own in scores[1:]])
    out = []
    for n, (result, own) in enumerate(zip(results, scores, strict=True)):
        run = arms.run_of(experiment, result.arm, result.rate, experiment.steps, 0)
        model = run.model
        low, high = student(own, share=experiment.task.metric == "accuracy")
        speeds = sorted(run.tokens_per_second for run in result.runs)
        length, source = experiment.task.context, experiment.task.source
        out.append(
            Row(
                result.arm.name,
                float(np.mean(own)),
                low,
                high,
                float(np.mean([run.loss for run in result.runs])),
                float(np.mean(own) - np.mean(scores[0])),
                corrected[n],
                result.rate,
                result.bound,
                tuple(own),
                sum(run.failed is not None for run in result.runs),
                arms.parameters(model),
                run.flops_per_token,
                {times * length: _state(model, times * length, times * source) for times in LONGER},
                speeds[len(speeds) // 2],
            )
        )
    return out


def _state(model: Decoder | EncoderDecoder, n: int, source: int) -> float:
    """How many numbers all layers cache of n tokens; ``source`` of an encoder-decoder are counted apart."""
    if isinstance(model, EncoderDecoder):
        blocks = model.decoder.blocks
        return sum(_held(block.attention, n=n - source) + _held(block.cross, s=source) for block in blocks)
    return sum(_held(block.attention, n=n) for block in model.blocks)


def _held(mixer: Any, **tokens: int) -> float:
    return at(kind(kind_of(mixer)).cost.state, mixer, **tokens)


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
    if near and words:
        text += f" Not separated from {first.name}: {', '.join(row.name for row in near)}."
    if bounds := [row.name for row in table if row.bound]:
        text += (
            f" The best learning rate is at the sweep's edge, a bound and no optimum: {', '.join(bounds)}."
        )
    if far := [f"{row.name} {', '.join(f'{x:.3f}' for x in row.outliers)}" for row in table if row.outliers]:
        text += f" Seeds far from an arm's others, for which its interval does not speak: {'; '.join(far)}."
    if failed := [f"{row.name} ({row.failed} of {row.seeds})" for row in table if row.failed]:
        text += f" Runs that failed: {', '.join(failed)}."
    oracle = "" if experiment.task.oracle is None else f", the oracle {experiment.task.oracle:.3f}"
    score = "Lower is better. " if experiment.task.metric == "bits_per_byte" else ""
    over = f"intervals are of 95% over {first.seeds} seeds."
    if first.seeds == 1:
        over = "of one seed there is no interval, and no difference can be judged."
    return f"{text} {score}Chance is {experiment.task.chance:.3f}{oracle}; {over}"


def command(folder: Path) -> str:
    """The command that makes a comparison, or continues it in its folder."""
    return shlex.join(["cutaway", "compare", str(folder / EXPERIMENT), "--output", str(folder)])


def document(experiment: Experiment, results: Sequence[ArmResult], folder: Path) -> dict[str, Any]:
    """Everything, for programs."""
    table = rows(experiment, results)
    looks = {result.arm.name: attention_on(experiment, result.runs[0]) for result in results}
    return {
        "command": command(folder),
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
                "interval": [row.low, row.high] if row.judged else None,
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
                "scores": list(row.scores),
                "outliers": row.outliers,
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


def cells(experiment: Experiment, table: Sequence[Row]) -> list[tuple[str, ...]]:
    """The table as texts: its headings, then an arm a row."""
    score = experiment.task.metric.replace("_", " ")
    headings = ("arm", score, "95% interval", "each seed", "loss", "p", "learning rate", "parameters")
    out: list[tuple[str, ...]] = [(*headings, "MFLOP/token", "state", "tokens/s")]
    for row in table:
        out.append((
            row.name,
            f"{row.score:.3f}",
            f"{row.low:.3f} to {row.high:.3f}" if row.judged else "",
            ", ".join(f"{score:.3f}" for score in row.scores),
            f"{row.loss:.3f}",
            "" if row.p is None else f"{row.p:.2g}",
            f"{row.rate:g}{' (bound)' if row.bound else ''}",
            f"{row.parameters:,}",
            f"{row.flops_per_token / 1e6:.2f}",
            f"{row.state_numbers:,.0f}",
            f"{row.tokens_per_second:,.0f}",
        ))  # fmt: skip
    return out


def title(experiment: Experiment, table: Sequence[Row]) -> str:
    """The task and the arms."""
    return f"{kind_of(experiment.task)}: {', '.join(row.name for row in table)}"


def markdown(experiment: Experiment, table: Sequence[Row], folder: Path) -> str:
    """The table and the paragraph."""
    headings, *lines = [f"| {' | '.join(row)} |" for row in cells(experiment, table)]
    above = [
        f"# {title(experiment, table)}",
        f"Hypothesis: {experiment.hypothesis or 'none was written.'}",
        "",
        headings,
        "|---" * (headings.count("|") - 1) + "|",
    ]
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    below = ["", paragraph(experiment, table), "", f"`{command(folder)}`: {versions}.", ""]
    return "\n".join([*above, *lines, *below])


def begin(experiment: Experiment, folder: Path) -> None:
    """Write experiment.yaml, by which a folder's runs are known as arms while they train."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / EXPERIMENT, yaml.safe_dump(to_dict(experiment), sort_keys=False))


def save(experiment: Experiment, results: Sequence[ArmResult], folder: Path) -> dict[str, Any]:
    """Write experiment.yaml, results.json, report.md and report.html into a folder; the document."""
    found = document(experiment, results, folder)
    begin(experiment, folder)
    write_file(folder / "results.json", json.dumps(found, indent=1))
    text = markdown(experiment, rows(experiment, results), folder)
    write_file(folder / "report.md", text)
    report.save(_page(experiment, results, found, text), folder)
    return found


def attention_on(experiment: Experiment, run: Measured) -> dict[str, list[float]]:
    """Attention weights, by layer and head, of the last scored token of the first held-out row.

    Those of an encoder-decoder are of the source. Empty for a run that failed, or a model with a layer that
    has none.
    """
    if run.failed is not None:
        return {}
    model = cutaway.load(run.folder, engine="pytorch").model
    if not all(has_pattern(block.attention) for block in model.config.blocks):
        return {}
    task, both = experiment.task.held_out, isinstance(model.config, EncoderDecoder)
    row = arms.Rows(task, arms.number(0, "held out"), 1, task.source if both else 0).row(0)
    scored = np.flatnonzero(row.loss_weights[0, :SHOWN])
    stop = int(scored[-1]) + 1 if len(scored) else SHOWN
    given = [row.ids[:, :stop], row.pos[:, :stop]]
    if both:
        given = [row.extra[SOURCE], np.arange(task.source)[None], *given]
    layers = len(model.decoder.blocks if both else model.blocks)
    name = "decoder.blocks.{}.cross.pattern" if both else "blocks.{}.attention.pattern"
    with torch.no_grad(), tracing(model, "*.pattern") as seen:
        model(*map(torch.from_numpy, given))
    return {
        f"{layer}.{head}": [round(value, 4) for value in weights[-1].tolist()]
        for layer in range(layers)
        for head, weights in enumerate(seen[name.format(layer)][0])
    }


def _page(
    experiment: Experiment, results: Sequence[ArmResult], found: dict[str, Any], text: str
) -> report.Report:
    """One file that needs no network: the report, curves, sweeps, prices, where arms look, and the data."""
    names = list(found["arms"])
    plots = [_scores(experiment, found), *(p for p in _plots(experiment, results, found) if p.series)]
    title, _, rest = text.partition("\n")
    parts: list[report.Part] = [report.Text(rest), report.Grid(plots)]
    if looks := found["attention"]:
        about = (
            "Attention weights of the last scored token on one text. An encoder-decoder's are of its source."
        )
        parts += [report.Text(f"## Where each arm looks\n\n{about}")]
        parts += [report.Grid([_look(name, looks[name]) for name in names if name in looks])]
    parts.append(report.Fold("The data", json.dumps(found, indent=1)))
    return report.Report(title.removeprefix("# "), parts)


def _scores(experiment: Experiment, found: dict[str, Any]) -> Bars:
    """Each arm's score with its interval."""
    score, arms_found = experiment.task.metric.replace("_", " "), found["arms"]
    ends = [arm["interval"] or (None, None) for arm in arms_found.values()]
    values = [arm["score"] for arm in arms_found.values()]
    bar = Bar(score, values, [low for low, _ in ends], [high for _, high in ends])
    return Bars(
        f"Held-out {score} of each arm",
        Axis(score, "95% interval over seeds" if any(low is not None for low, _ in ends) else ""),
        "arm",
        list(arms_found),
        [bar],
        dots=True,
        marks=[("chance", experiment.task.chance)],
        colors=list(range(len(values))),
    )


def _plots(experiment: Experiment, results: Sequence[ArmResult], found: dict[str, Any]) -> list[Plot]:
    """Learning curves, sweeps, scores against the state, the state's growth, and heads by step."""
    metric, arms_found = experiment.task.metric, found["arms"]
    score, step = metric.replace("_", " "), Axis("step", whole=True)
    held, state = Axis(f"held-out {score}"), Axis("numbers of state", log=True)
    sweeps = [
        [
            (rate, tried[experiment.steps].loss)
            for rate, tried in sorted(result.tried.items())
            if experiment.steps in tried
        ]
        for result in results
    ]
    growth = [list(arm["state_by_length"].items()) for arm in arms_found.values()]

    def means(name: str) -> list[Series]:
        return _series(arms_found, [_mean(one.runs, name) for one in results])

    return [
        Plot(
            f"Held-out {score} by step", step, held, means(metric), marks=[("chance", experiment.task.chance)]
        ),
        Plot(
            "Loss of the first seed by learning rate",
            Axis("learning rate", log=True),
            Axis("loss", "nats per token"),
            _series(arms_found, sweeps, points=True),
        ),
        Plot(
            f"{score.capitalize()} by numbers of state, with its interval",
            state,
            Axis(score),
            _prices(arms_found),
        ),
        Plot(
            "Numbers of state by length",
            Axis("length", "tokens", log=True),
            state,
            _series(arms_found, growth, points=True),
        ),
        *(
            Plot(f"Strongest {name.replace('_', '-')} head by step", step, Axis("score"), means(name))
            for name in CURVES[-2:]
        ),
    ]


def _series(
    names: Iterable[str], lines: Sequence[Sequence[tuple[Any, Any]]], points: bool = False
) -> list[Series]:
    """A line for each arm that has points; an arm has one colour in all plots."""
    return [
        Series(name, [x for x, _ in line], [y for _, y in line], points=points, color=n)
        for n, (name, line) in enumerate(zip(names, lines, strict=True))
        if line
    ]


def _prices(arms_found: Mapping[str, dict[str, Any]]) -> list[Series]:
    """Each arm as a point at its state and its score."""
    out = []
    for n, (name, arm) in enumerate(arms_found.items()):
        low, high = arm["interval"] or (None, None)
        around = {} if low is None else {"low": [low], "high": [high]}
        place = ([arm["state_numbers"]], [arm["score"]])
        out.append(Series(name, *place, labels=[name], line=False, points=True, color=n, **around))
    return out


def _look(name: str, heads: Mapping[str, Sequence[float]]) -> Heat:
    """Attention weights as a heat map, a row for each head."""
    tokens = [str(n) for n in range(len(next(iter(heads.values()))))]
    return Heat(
        name,
        Labels("layer.head", list(heads)),
        Labels("token", tokens),
        list(heads.values()),
        "attention weight",
        1,
    )


def _mean(runs: Sequence[Measured], name: str) -> list[tuple[int, float]]:
    """A curve's mean over runs, step by step."""
    found = [run.curves[name] for run in runs if name in run.curves]
    if not found:
        return []
    return [(step, float(np.mean([curve[n][1] for curve in found]))) for n, (step, _) in enumerate(found[0])]
