"""reasoning-gym (2505.24760): generated problems whose answers a program checks, ``reasoning_gym:NAME``.

The problems are those that fine-tuning with as many holds out (``data/tasks.py``): none of its training
questions is among them. Accuracy is a score of 0.99 or more; ``score`` is the mean with partly right answers.
The chance level is the accuracy of always giving the commonest answer.
"""

from __future__ import annotations

from functools import partial

from cutaway.data import tasks
from cutaway.evaluate.tasks import Exercise, Task

TRAINED, COUNT = 2048, 200  # questions of training whose text is left out, and of the evaluation
ASK = "Answer with nothing but the answer."


def task(name: str, limit: int | None = None) -> Task:
    """``limit`` problems (200). UserError for a name that reasoning-gym does not know."""
    found = tasks.load(f"reasoning_gym:{name}", TRAINED, limit or COUNT)
    items = tuple(
        Exercise(f"{problem.question}\n{ASK}", partial(_score, found, problem)) for problem in found.test
    )
    return Task(found.name, "reasoning-gym", items, found.floor(), max_tokens=64)


def _score(found: tasks.Task, problem: tasks.Problem, text: str) -> float:
    return found.score(text, problem)
