"""Questions of small programs: arithmetic, spelling, dates, lists, tables, refusals, ``programs:NAME``.

None of their facts is in what the programs write to train on (``data/programs/``). An answer is right where
its last line is the expected one or a sentence that ends with it. Arithmetic is asked with the calculator.
The chance level is the accuracy of always giving the commonest answer.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from cutaway.data.programs import registry
from cutaway.data.programs.item import Item, right
from cutaway.evaluate.task import AgentExercise, EvaluationTask, Exercise

COUNT, SEED = 200, 1 << 20


def task(name: str, limit: int | None = None) -> EvaluationTask:
    """``limit`` held-out questions (200). UserError for a program that there is not."""
    items = registry.items(name, limit or COUNT, SEED, held_out=True)
    chance = Counter(item.answer for item in items).most_common(1)[0][1] / len(items)
    made: tuple[Any, ...] = tuple(map(_exercise, items))
    return EvaluationTask(f"programs:{name}", "cutaway/data/programs", made, chance, max_tokens=64)


def _exercise(item: Item) -> Exercise | AgentExercise:
    check = partial(_score, item.answer)
    return Exercise(item.question, check) if item.expression is None else AgentExercise(item.question, check)


def _score(expected: str, text: str) -> float:
    return float(right(text, expected))
