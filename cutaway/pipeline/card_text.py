"""The report card as Markdown, for a repository or a model's page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cutaway.pipeline.run import spell

SHOWN = 100  # characters of a sample


def markdown(found: Mapping[str, Any]) -> str:
    """The card's verdicts, scores, samples, times, contamination, attacks and costs."""
    return "\n".join([f"# Report card: {found['name']}", "", found["about"], "", *_body(found), ""])


def _body(found: Mapping[str, Any]) -> Iterator[str]:
    model, spent, machine = found["model"], found["costs"], found["machine"]
    budget = f" of a budget of {spell(found['budget'])}" if found["budget"] else ""
    size = (
        f"{model['weights']:,} weights, {model['layers']} layers of width {model['width']}; " if model else ""
    )
    used = f"{machine['threads']} of {machine['cores']} cores"
    yield f"{size}{spell(spent['seconds'])}{budget} on {machine['processor']}, {used}."
    yield from ["", "## What it can do", "", *(f"- {one}" for one in found["verdicts"]), ""]
    yield from _scores(found["scores"])
    yield from _samples(found["samples"])
    yield from _stages(found["stages"])
    yield from _trust(found)
    lines = [
        f"- {spell(spent['seconds'])} of computing",
        f"- {spent['kwh']:.3g} kWh ({spent['energy']})",
        f"- {spent['money']:.2g} {spent['currency']} ({spent['price']})",
        f"- {spent['carbon_grams']:.2g} g of CO2 ({spent['carbon']})",
    ]
    yield from ["", "## What it cost", "", *lines, "", "## Model card", ""]
    if found["limits"]:
        yield from [f"**What it may not be used for.** {found['limits']}", ""]
    yield from [f"- {one}" for one in found["licences"]]
    yield from ["", f"Cutaway {found['version']}; `{found['command']}` repeats it."]


def _scores(scores: Mapping[str, Any]) -> Iterator[str]:
    models = list(dict.fromkeys(model for entry in scores.values() for model in entry["models"]))
    if not models:
        return
    yield f"| task | chance | {' | '.join(models)} | n |"
    yield f"|---|---|{'---|' * len(models)}---|"
    for task, entry in scores.items():
        share = entry["measure"] == "acc"
        cells = [_value(entry["models"].get(model), share) for model in models]
        chance = percent(entry["chance"]) if "chance" in entry else ""
        name = task.removeprefix("programs:") if share else f"{task}, bits per byte"
        asked = ", ".join(dict.fromkeys(f"{one['n']:,}" for one in entry["models"].values()))
        yield f"| {name} | {chance} | {' | '.join(cells)} | {asked} |"


def percent(share: float) -> str:
    """In whole percents; 100% is all and 0% none, so what is nearly so has a decimal (299 of 300: 99.7%)."""
    whole = f"{share:.0%}"
    if whole not in ("0%", "100%") or share in (0.0, 1.0):
        return whole
    return f"{min(max(share, 0.001), 0.999):.1%}"


def _value(one: Mapping[str, Any] | None, share: bool) -> str:
    if one is None:
        return ""
    low, high = one["interval"]
    if not share:
        ends = "" if low is None or high is None else f" ({low:.3f} to {high:.3f})"
        return f"{one['value']:.3f}{ends}"
    return f"{percent(one['value'])} ({percent(low or 0)} to {percent(1 if high is None else high)})"


def _samples(samples: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    if not samples:
        return
    yield from ["", "## The same questions after each stage", "", "Greedy, without tools."]
    for prompt, answers in samples.items():
        yield from ["", f"**{_cell(prompt)}**", ""]
        yield from [f"- {stage}: {_cell(text)[:SHOWN] or '(nothing)'}" for stage, text in answers.items()]


def _cell(text: str) -> str:
    """A text on one line, in which no character is Markdown's."""
    shown = " ".join(text.split())
    return "".join(f"\\{c}" if c in "|*_`<>[]#\\" else c for c in shown)


def _stages(stages: list[Mapping[str, Any]]) -> Iterator[str]:
    yield from ["", "## Stages", "", "| stage | verb | seconds | planned | steps | loss, first to last |"]
    yield "|---|---|---|---|---|---|"
    for one in stages:
        loss = one.get("curves", {}).get("loss", [])
        ends = f"{loss[0][1]:.3f} to {loss[-1][1]:.3f}" if loss else ""
        planned = f"{one['planned']:.0f}" if "planned" in one else ""
        steps = one.get("steps") or ""
        yield f"| {one['name']} | {one['verb']} | {one['seconds']:.0f} | {planned} | {steps} | {ends} |"


def _trust(found: Mapping[str, Any]) -> Iterator[str]:
    yield from ["", "## What it can be trusted with", ""]
    if calibration := found["calibration"]:
        yield (
            f"- Calibration on {calibration['tokens']:,} tokens of held-out text: an expected error of "
            f"{calibration['error']:.1%}."
        )
    for name, one in found["attacks"].items():
        low, high = one["interval"]
        ends = f"{percent(low or 0)} to {percent(1 if high is None else high)}"
        yield f"- Attack `{name}`: {percent(one['rate'])} succeed ({ends}, n {one['n']}): {one['verdict']}."
    if found["contamination"]:
        yield from [
            "",
            "| evaluation | items | questions left out | documents left out | 8-word sequences shared |",
        ]
        yield "|---|---|---|---|---|"
    for name, one in found["contamination"].items():
        left = f"{one['questions_left_out']} | {one['documents_left_out']} | {one['sequences_shared']}"
        yield f"| {name} | {one['items']} | {left} |"
