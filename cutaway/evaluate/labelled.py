"""A classifier on a labelled file: accuracy and macro F1, with their intervals.

F1 of a label is 2 right / (given + predicted). Macro F1 is the mean over labels that are given or predicted,
as in scikit-learn. It is a figure of the whole file: its interval leaves out one text at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.evaluate import statistics
from cutaway.evaluate.statistics import Estimate
from cutaway.evaluate.task import EvaluationTask, Labelled
from cutaway.lm import LanguageModel

Answered = tuple[dict[str, list[float]], Estimate, list[list[str]]]


def answered(lm: LanguageModel, task: EvaluationTask, progress: Callable[[int, int], None]) -> Answered:
    """For each item whether its labels are right; macro F1; and the labels that the model gives.

    UserError for a model that is no classifier, for labels that it does not have, and for a text that is
    longer than it reads.
    """
    items: Sequence[Labelled] = task.items  # type: ignore[assignment]
    own = lm.classifier
    if own is None or own.of_tokens:
        raise UserError(f"{lm.checkpoint.source} is no classifier of texts, which {task.name} asks for")
    if own.problem == "regression" or (len(own.labels) == 1 and not items[0].several):
        raise UserError(
            f"{lm.checkpoint.source} gives one number, or a regression's, and no label of several"
        )
    given = np.zeros((len(items), len(own.labels)), bool)
    for row, item in zip(given, items, strict=True):
        row[[_number(label, own.labels, task) for label in item.labels]] = True
    texts = [item.text if item.pair is None else (item.text, item.pair) for item in items]
    found = lm.classify(texts, progress=lambda _, done, total: progress(int(done), int(total or 0)))
    if items[0].several:
        predicted = found.scores >= 0.5
    else:
        predicted = np.eye(len(own.labels), dtype=bool)[found.scores.argmax(axis=1)]
    right = (given == predicted).all(axis=1)
    f1 = statistics.jackknife(lambda rows: macro_f1(given[rows], predicted[rows]), len(items))
    named = [[own.labels[n] for n in np.flatnonzero(row)] for row in predicted]
    return {"acc": right.astype(float).tolist()}, f1, named


def macro_f1(given: np.ndarray, predicted: np.ndarray) -> float:
    """The mean of F1 over labels that are given or predicted, of flags [n labels]; 0 where there is none."""
    right, both = (given & predicted).sum(axis=0), given.sum(axis=0) + predicted.sum(axis=0)
    there = both > 0
    return float((2 * right[there] / both[there]).mean()) if there.any() else 0.0


def _number(label: str | int, names: tuple[str, ...], task: EvaluationTask) -> int:
    """The number of a label, which a table of text may have as digits."""
    if label in names:
        return names.index(str(label))
    number = int(label) if isinstance(label, int) or label.isdecimal() else -1
    if not 0 <= number < len(names):
        known = ", ".join(names[:20])
        raise UserError(f"{task.source}: has the label {quoted(label)}, and the model's are {known}")
    return number
