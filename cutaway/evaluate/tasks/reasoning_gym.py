"""reasoning-gym (2505.24760): generated problems whose answers a program checks, ``reasoning_gym:NAME``.

The problems are those that fine-tuning with as many holds out (``data/tasks.py``): none of its training
questions is among them. Accuracy is a score of 0.99 or more; ``score`` is the mean with partly right answers.
The chance level is the accuracy of always giving the commonest answer. Settings of the task follow its name,
as those of training do in data.options: ``reasoning_gym:chain_sum:max_terms=2:max_digits=2``.
"""

from __future__ import annotations

import json
from functools import partial

from cutaway.data import tasks
from cutaway.errors import UserError
from cutaway.evaluate.task import EvaluationTask, Exercise

TRAINED, COUNT = 2048, 200  # questions of training whose text is left out, and of the evaluation
ASK = "Answer with nothing but the answer."


def task(name: str, limit: int | None = None) -> EvaluationTask:
    """``limit`` problems (200). UserError for a name or a setting that reasoning-gym does not know."""
    own, *settings = name.split(":")
    options = dict(_setting(name, each) for each in settings)
    found = tasks.load(f"reasoning_gym:{own}", TRAINED, limit or COUNT, options=options)
    items = tuple(
        Exercise(f"{problem.question}\n{ASK}", partial(found.score, problem=problem))
        for problem in found.test
    )
    return EvaluationTask(f"reasoning_gym:{name}", "reasoning-gym", items, found.floor(), max_tokens=64)


def _setting(name: str, text: str) -> tuple[str, object]:
    """max_terms=2 as a name and a value: a number, true or false, else text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UserError(f"reasoning_gym:{name}: {text!r} is not a setting: write NAME=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
