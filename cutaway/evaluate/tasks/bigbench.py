"""BIG-bench (2206.04615): its multiple-choice tasks, ``bigbench:NAME``. For evaluation only.

The package bigbench is 358 MB, fetched once, of which the tasks' questions are kept.
"""

from __future__ import annotations

import json

from cutaway.errors import UserError
from cutaway.evaluate.data import BIGBENCH, folder
from cutaway.evaluate.task import EvaluationTask, Question

TASKS = "bigbench-1.0.0/bigbench/benchmark_tasks/*/task.json"


def task(name: str, limit: int | None = None) -> EvaluationTask:
    """A task's examples; UserError for a name that is none, or one without choices."""
    found = {path.parent.name: path for path in folder(BIGBENCH, TASKS).rglob("task.json")}
    if name not in found:
        raise UserError(f"bigbench has no task {name!r}: use {', '.join(sorted(found))}")
    written = json.loads(found[name].read_text("utf-8"))
    before, between = (
        written.get("example_input_prefix", "\nQ: "),
        written.get("example_output_prefix", "\nA: "),
    )
    items = []
    for row in written.get("examples", ()):
        scores = row.get("target_scores")
        if scores and max(scores.values()) > 0:
            choices = tuple(scores)
            asked = written.get("task_prefix", "") + before + row["input"]
            if written.get("append_choices_to_input", True):
                asked += "".join(f"\n  choice: {choice}" for choice in choices)
            best = max(range(len(choices)), key=lambda n: scores[choices[n]])
            lead = between.rstrip(" ")
            items.append(
                Question(asked.lstrip("\n") + lead, tuple(between[len(lead) :] + c for c in choices), best)
            )
    if not items:
        raise UserError(f"bigbench:{name} has no questions with choices")
    chance = sum(1 / len(item.choices) for item in items[:limit]) / len(items[:limit])
    return EvaluationTask(f"bigbench:{name}", "bigbench 1.0.0", tuple(items[:limit]), chance)
