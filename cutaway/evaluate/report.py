"""Pages of evaluations and arenas, from the documents that `--json` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from cutaway.page import report
from cutaway.page.charts import Axis, Bar, Bars

INTERVAL = "95% interval"


def evaluation(document: Mapping[str, Any]) -> report.Report:
    """A report: each metric of each task with its interval, what separates two models, first prompts."""
    other = document.get("against")
    models = {document["model"]: document["tasks"]} | ({other["model"]: other["tasks"]} if other else {})
    parts: list[report.Part] = [report.Grid([_metric(name, models) for name in _metrics(document["tasks"])])]
    if other:
        names = f"{document['model']} − {other['model']}"
        parts.append(_difference(f"Difference: {names}", other["difference"]))
    for name, task in document["tasks"].items():
        about = f"n {task['n']}, {task['source']}"
        parts.append(report.Fold(f"{name}: the first prompt ({about})", task["first_prompt"]))
    return report.Report(f"Evaluation of {' and '.join(models)}", parts)


def arena(document: Mapping[str, Any]) -> report.Report:
    """A report: ratings and their differences with intervals, and every answer."""
    ratings = dict(sorted(document["ratings"].items(), key=lambda one: -one[1]["elo"]))
    rated = Bars(
        "Ratings",
        Axis("Elo", INTERVAL),
        "model",
        list(ratings),
        [_bar("", [(one["elo"], one["interval"]) for one in ratings.values()])],
        dots=True,
    )
    apart = Bars(
        "Differences of Elo",
        Axis("Elo", INTERVAL),
        "models",
        [f"{one['first']} − {one['second']}" for one in document["differences"]],
        [_bar("", [(one["elo"], one["interval"]) for one in document["differences"]])],
        dots=True,
        marks=[("equal", 0.0)],
    )
    about = (
        f"{document['prompts']} prompts, judged by {document['judge']}. The answer shown first won "
        f"{document['first_place_won']:.0%}; {document['changed_with_order']} verdicts changed with "
        "the order and count as ties."
    )
    answers = [report.Fold(f"Answers of {name}", _listed(own)) for name, own in document["answers"].items()]
    return report.Report(
        f"Arena of {', '.join(ratings)}",
        [report.Html(f"<p>{escape(about)}</p>"), report.Grid([rated, apart]), *answers],
    )


def _listed(answers: Sequence[str]) -> str:
    return "\n\n".join(f"{n}. {answer}" for n, answer in enumerate(answers, 1))


def _metrics(tasks: Mapping[str, Any]) -> list[str]:
    """The metrics of all tasks, each once: what has an interval is one."""
    ends = "_interval"
    return list(
        dict.fromkeys(key.removesuffix(ends) for task in tasks.values() for key in task if key.endswith(ends))
    )


def _metric(name: str, models: Mapping[str, Any]) -> Bars:
    """A metric of the tasks that have it, a series a model."""
    first = next(iter(models.values()))
    tasks = [task for task in first if name in first[task]]
    chance = name == "acc"
    levels = {
        task: f" (chance {first[task]['chance']:.2f})" for task in tasks if chance and "chance" in first[task]
    }
    groups = [task + levels.get(task, "") for task in tasks]
    series = [
        _bar(model, [(own[task][name], own[task][f"{name}_interval"]) for task in tasks])
        for model, own in models.items()
    ]
    share = name.startswith("acc") or name == "exact_match"
    axis = Axis(name, INTERVAL, low=0.0, high=1.0) if share else Axis(name, INTERVAL)
    return Bars(name, axis, "task", groups, series, dots=True)


def _difference(title: str, tasks: Mapping[str, Any]) -> Bars:
    found = {f"{task} {metric}": one for task, own in tasks.items() for metric, one in own.items()}
    return Bars(
        title,
        Axis("difference", INTERVAL),
        "task",
        list(found),
        [_bar("", [(one["value"], one["interval"]) for one in found.values()])],
        dots=True,
        marks=[("equal", 0.0)],
    )


def _bar(name: str, figures: Sequence[tuple[float, Sequence[float | None]]]) -> Bar:
    lows, highs = [ends[0] for _, ends in figures], [ends[1] for _, ends in figures]
    return Bar(name, [value for value, _ in figures], lows, highs)
