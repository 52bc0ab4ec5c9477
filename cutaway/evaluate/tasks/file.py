"""A file of one's own, ``file:NAME.jsonl``: a line is a question with choices, or an exercise with an answer.

    {"prompt": "2 + 2 =", "choices": ["4", "5"], "answer": 0}     ``answer``: which choice, by number or text
    {"prompt": "What is 2 + 2?", "answer": "4"}                   the answer's last line must give it

``question`` is read as ``prompt`` is, and so are tables of other kinds (``data/rows.py``), such as CSV.

A number must be that line's last number; another answer must stand in it as a word. So an answer that lists
every word it knows is right: ask in the prompt for the answer alone. ``cluster`` names what a line shares
with others; lines with one prompt share it anyway.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cutaway.data.rows import rows
from cutaway.errors import UserError, quoted
from cutaway.evaluate import answers
from cutaway.evaluate.task import EvaluationTask, Exercise, Question

PROMPTS = ("prompt", "question")


def task(path: str, limit: int | None = None) -> EvaluationTask:
    """The file's lines; UserError for one that is neither, and for a file that mixes both."""
    made: list[Any] = []
    given: Counter[str] = Counter()
    for where, row in rows(path):
        if len(made) == limit:
            break
        prompt = next((row[name] for name in PROMPTS if name in row), None)
        answer, cluster = row.get("answer"), row.get("cluster")
        if not isinstance(prompt, str) or answer is None:
            keys = ", ".join(map(quoted, row)) or "nothing"
            raise UserError(f'{where}: has no "prompt" (or "question") and "answer", but {keys}')
        if not isinstance(cluster, str | int | None):
            raise UserError(f"{where}: cluster should be a text or a whole number")
        cluster = None if cluster is None else str(cluster)
        if "choices" in row:
            made.append(_question(prompt, row["choices"], answer, cluster, where))
        else:
            made.append(Exercise(prompt, partial(_right, str(answer)), cluster))
            given[str(answer)] += 1
    if not made:
        raise UserError(f"{path}: has no line")
    if len({type(item) for item in made}) > 1:
        raise UserError(f"{path}: mixes lines with choices and lines without: use two files")
    asked = Counter(item.prompt for item in made)
    made = [
        replace(item, cluster=f"prompt {item.prompt}")
        if item.cluster is None and asked[item.prompt] > 1
        else item
        for item in made
    ]
    if given:
        chance = given.most_common(1)[0][1] / len(made)
    else:
        chance = sum(1 / len(item.choices) for item in made) / len(made)
    return EvaluationTask(Path(path).stem, path, tuple(made), chance)


def _question(prompt: str, choices: Any, answer: Any, cluster: str | None, where: str) -> Question:
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(c, str) and c for c in choices)
    ):
        raise UserError(f"{where}: choices should be two texts or more")
    if len(set(choices)) < len(choices):
        raise UserError(f"{where}: two choices are equal, so that neither is the answer alone")
    if isinstance(answer, str):
        answer = choices.index(answer) if answer in choices else None
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise UserError(f"{where}: the answer is none of the {len(choices)} choices")
    space = "" if prompt[-1:].isspace() else " "
    return Question(prompt, tuple(space + choice for choice in choices), answer, cluster)


def _right(expected: str, text: str) -> float:
    return float(answers.names(expected, answers.last_line(text)))
