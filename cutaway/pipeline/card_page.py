"""The report card as one page in the house's look."""

from __future__ import annotations

import html as escaping
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cutaway.page import report
from cutaway.page.charts import Axis, Bar, Bars, Plot, Series, Table
from cutaway.pipeline.run import spell

SHOWN = 160  # characters of a sample
LOSSES = ("loss", "validation_loss")


def html(found: Mapping[str, Any]) -> str:
    """The page of a card's document."""
    return report.html(f"Report card: {found['name']}", list(_parts(found)))


def _parts(found: Mapping[str, Any]) -> Iterator[report.Part]:
    yield report.Html(f"<p>{escaping.escape(found['about'])}</p>{_summary(found)}")
    yield _heading("What it can do")
    if found["verdicts"]:
        yield report.Html(f"<ul>{''.join(f'<li>{escaping.escape(one)}' for one in found['verdicts'])}</ul>")
    yield from _scores(found["scores"])
    yield from _samples(found["samples"])
    plots = [plot for stage in found["stages"] for plot in _curves(stage)]
    yield from _section("How it learned", [report.Grid(plots)] if plots else [])
    yield from _section("What it can be trusted with", _trust(found))
    yield from _section("What went in", _data(found))
    yield _heading("What it cost")
    yield from _costs(found)
    yield _heading("Model card")
    yield report.Text(_model_card(found))
    yield report.Fold("The card as data", json.dumps(found, indent=1, ensure_ascii=False))


def _section(name: str, parts: Iterable[report.Part]) -> Iterator[report.Part]:
    yield _heading(name)
    yield from list(parts) or [report.Text("No stage of this pipeline has to do with it.")]


def _heading(text: str) -> report.Html:
    return report.Html(f"<h2>{escaping.escape(text)}</h2>")


def _summary(found: Mapping[str, Any]) -> str:
    model, spent = found["model"], found["costs"]
    size = (
        f"{model['weights']:,} weights in {model['layers']} layers of width {model['width']}; "
        if model else ""
    )  # fmt: skip
    budget = f" of a budget of {spell(found['budget'])}" if found["budget"] else ""
    machine = found["machine"]
    where = f"{machine['processor']}, {machine['threads']} of {machine['cores']} cores"
    sentence = f"{size}{spell(spent['seconds'])}{budget} on {where}."
    return f"<p>{escaping.escape(sentence)}</p>"


def _scores(scores: Mapping[str, Any]) -> Iterator[report.Part]:
    right = {task: one for task, one in scores.items() if one["measure"] == "acc"}
    others = {task: one for task, one in scores.items() if one["measure"] != "acc"}
    if right:
        yield _bars(
            "Questions that are held out", Axis("right", "95% interval", low=0.0, high=1.0), right, True
        )
    if others:
        yield _bars("Text that is held out", Axis("bits per byte", "95% interval"), others, False)
    rows = [
        [task, model, own["value"], own["interval"][0], own["interval"][1], entry.get("chance"), own["n"]]
        for task, entry in scores.items()
        for model, own in entry["models"].items()
    ]
    if rows:
        columns = ["task", "model", "value", "95% from", "to", "chance", "n"]
        yield Table("Every score", columns, rows)


def _bars(title: str, axis: Axis, entries: Mapping[str, Any], chance: bool) -> Bars:
    models = list(dict.fromkeys(model for entry in entries.values() for model in entry["models"]))
    series = []
    if chance:
        series.append(Bar("chance", [entry.get("chance") for entry in entries.values()]))
    for model in models:
        own = [entry["models"].get(model) for entry in entries.values()]
        series.append(
            Bar(
                model,
                [one and one["value"] for one in own],
                [one and one["interval"][0] for one in own],
                [one and one["interval"][1] for one in own],
            )
        )
    return Bars(title, axis, "task", [_short(task) for task in entries], series, dots=True)


def _short(task: str) -> str:
    return task.removeprefix("programs:")


def _samples(samples: Mapping[str, Mapping[str, str]]) -> Iterator[report.Part]:
    rows = []
    for prompt, answers in samples.items():
        before = None
        for stage, text in answers.items():
            shown = " ".join(text.split())[:SHOWN] or "(nothing)"
            rows.append([prompt if before is None else "", stage, shown])
            before = shown
    if rows:
        note = "Greedy, without tools; the line above a stage's is the model before it."
        yield Table("The same questions after each stage", ["question", "after", "answer"], rows, note=note)


def _curves(stage: Mapping[str, Any]) -> Iterator[Plot]:
    curves = stage.get("curves", {})
    groups = [[name for name in LOSSES if name in curves], [name for name in curves if name not in LOSSES]]
    for names in groups:
        if not names:
            continue
        series = [
            Series(name.replace("_", " "), [x for x, _ in curves[name]], [y for _, y in curves[name]],
                   points=len(curves[name]) < 12)
            for name in names
        ]  # fmt: skip
        unit = "nats per token" if names[0] in LOSSES and stage["name"] else ""
        y = Axis("loss" if names[0] in LOSSES else "value", unit)
        yield Plot(stage["name"], Axis("step", whole=True), y, series)


def _trust(found: Mapping[str, Any]) -> Iterator[report.Part]:
    charts: list[Any] = []
    calibration = found["calibration"]
    if calibration:
        bins = calibration["bins"]
        charts.append(
            Plot(
                f"Calibration on held-out text: error {calibration['error']:.1%}",
                Axis("probability of the likeliest token", low=0.0, high=1.0),
                Axis("how often it is right", low=0.0, high=1.0),
                [
                    Series("calibrated", [0, 1], [0, 1], faint=True),
                    Series(
                        calibration["model"], [b["p"] for b in bins], [b["right"] for b in bins], points=True
                    ),
                ],
                note=f"{calibration['tokens']:,} tokens in bins of 0.1.",
            )
        )
    attacks = found["attacks"]
    if attacks:
        own = list(attacks.values())
        bar = Bar("", [one["rate"] for one in own], [one["interval"][0] for one in own],
                  [one["interval"][1] for one in own])  # fmt: skip
        groups = [f"{name}: {one['verdict']}" for name, one in attacks.items()]
        axis = Axis("attacks that succeed", "95% interval", low=0.0, high=1.0)
        charts.append(Bars("Attacks", axis, "probe", groups, [bar], dots=True))
    if charts:
        yield report.Grid(charts)


def _data(found: Mapping[str, Any]) -> Iterator[report.Part]:
    data = found["data"]
    if data.get("texts"):
        rows = [
            [one["source"], one["licence"], one.get("documents"), one.get("characters")]
            for one in data["texts"]
        ]
        yield Table("Sources", ["source", "licence", "documents", "characters"], rows)
    if data.get("programs"):
        yield Table(
            "Conversations by program", ["program", "conversations"], [*map(list, data["programs"].items())]
        )
    rows = [
        [name, one["items"], one["questions_left_out"], one["documents_left_out"], one["sequences_shared"]]
        for name, one in found["contamination"].items()
    ]
    if rows:
        columns = [
            "evaluation",
            "items",
            "questions left out",
            "documents left out",
            "8-word sequences shared",
        ]
        note = "What was found in the training data of each evaluation; what is left out is not trained on."
        yield Table("Contamination", columns, rows, note=note)


def _costs(found: Mapping[str, Any]) -> Iterator[report.Part]:
    spent = found["costs"]
    lines = [
        f"- {spell(spent['seconds'])} of computing",
        f"- {spent['kwh']:.3g} kWh ({spent['energy']})",
        f"- {spent['money']:.2g} {spent['currency']} ({spent['price']})",
        f"- {spent['carbon_grams']:.2g} g of CO2 ({spent['carbon']})",
    ]
    yield report.Text("\n".join(lines))
    rows = [
        [one["name"], one["verb"], one["seconds"], one.get("planned"), one.get("steps")]
        for one in found["stages"]
    ]
    yield Table("Seconds by stage", ["stage", "verb", "seconds", "planned", "steps"], rows)


def _model_card(found: Mapping[str, Any]) -> str:
    packed = found["packed"]
    lines = [
        f"Trained with Cutaway {found['version']}. The command that repeats it:",
        "",
        f"    {found['command']}",
    ]
    if found["limits"]:
        lines += ["", f"**What it may not be used for.** {found['limits']}"]
    if found["licences"]:
        lines += ["", "**Licences of what went in**", "", *(f"- {one}" for one in found["licences"])]
    if packed:
        size = f"{packed['bytes'] / 1e6:.2g} MB, {packed['bytes_before'] / 1e6:.2g} MB before"
        cost = packed.get("cost")
        change = f"; perplexity {cost['perplexity_before']:.3f} to {cost['perplexity']:.3f}" if cost else ""
        lines += ["", f"**Packed** as {packed['path']}: {size}{change}."]
    return "\n".join(lines)
