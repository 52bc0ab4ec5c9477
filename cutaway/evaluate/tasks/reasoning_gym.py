"""reasoning-gym (2505.24760): generated problems whose answers a program checks, ``reasoning_gym:NAME``.

Item i of a set uses the seed's i-th successor nearly everywhere, so that sets of neighbouring seeds share
almost all items: these seeds begin far from those that fine-tuning draws from, and a question is asked once.
Accuracy is a score of 0.99 or more; ``score`` is the mean with partly right answers. The chance level is the
accuracy of always giving the commonest answer.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from cutaway.errors import UserError
from cutaway.evaluate.tasks import Exercise, Task

SEED, COUNT = 1_000_000_000, 200
ASK = "Answer with nothing but the answer."


def task(name: str, limit: int | None = None) -> Task:
    """``limit`` problems (200). UserError for a name that reasoning-gym does not know."""
    try:
        import reasoning_gym
    except ImportError:
        raise UserError("reasoning-gym is not installed: pip install 'cutaway[eval]'") from None
    count = limit or COUNT
    try:
        found = reasoning_gym.create_dataset(name, seed=SEED, size=2 * count)
    except ValueError as error:
        raise UserError(f"reasoning-gym: {error}") from None
    kept: dict[str, Any] = {}
    for item in found:
        kept.setdefault(item["question"], item)
        if len(kept) == count:
            break
    items = tuple(
        Exercise(f"{item['question']}\n{ASK}", partial(_score, found, item)) for item in kept.values()
    )
    answers = Counter(str(item["answer"]) for item in kept.values())
    chance = answers.most_common(1)[0][1] / len(kept)
    return Task(f"reasoning_gym:{name}", "reasoning-gym", items, chance, max_tokens=64)


def _score(found: Any, item: Any, text: str) -> float:
    return float(found.score_answer(text.strip(), item))
