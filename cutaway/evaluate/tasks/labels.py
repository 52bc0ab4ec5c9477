"""A labelled file, ``labels:NAME.jsonl``, for a classifier: a line is a text or a pair of texts, and a label.

    {"text": "a good film", "label": "positive"}                       the label by its name or its number
    {"text": "It rains.", "pair": "It is wet.", "label": "entailment"}
    {"text": "I am angry and sad", "labels": ["anger", "sadness"]}     several labels, or none

Other tables are read as well (``data/rows.py``), such as CSV. The pairs of keys that data sets use are known:
sentence1 and sentence2, premise and hypothesis, question and answer, query and passage.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from cutaway.data.rows import rows
from cutaway.errors import UserError, quoted
from cutaway.evaluate.task import EvaluationTask, Labelled

PAIRS = (
    *(("text", "pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("query", "passage")),
    *(("question", "answer"), ("sentence", None), ("text", None)),
)


def task(path: str, limit: int | None = None) -> EvaluationTask:
    """The file's lines; UserError for one without a text or a label, and for a file that mixes both kinds."""
    made: list[Labelled] = []
    for where, row in rows(path):
        if len(made) == limit:
            break
        keys = next((pair for pair in PAIRS if all(key in row for key in pair if key)), None)
        texts = [row[key] for key in keys or () if key]
        if not texts or not all(isinstance(text, str) and text for text in texts):
            given = ", ".join(map(quoted, row)) or "nothing"
            raise UserError(f'{where}: has no "text", nor two texts such as "text" and "pair", but {given}')
        cluster = row.get("cluster")
        if not isinstance(cluster, str | int | None):
            raise UserError(f"{where}: cluster should be a text or a whole number")
        own = None if cluster is None else str(cluster)
        labels, several = _labels(row, where)
        made.append(Labelled(texts[0], texts[1] if len(texts) > 1 else None, labels, several, own))
    if not made:
        raise UserError(f"{path}: has no line")
    if len({item.several for item in made}) > 1:
        raise UserError(f'{path}: mixes lines with "label" and lines with "labels": use two files')
    commonest = Counter(item.labels for item in made).most_common(1)[0][1]
    return EvaluationTask(Path(path).stem, path, tuple(made), commonest / len(made))


def _labels(row: dict[str, Any], where: str) -> tuple[tuple[str | int, ...], bool]:
    """The labels of a line, and whether it may have several."""
    several = "labels" in row
    given: Any = row["labels"] if several else [row.get("label")]
    if not isinstance(given, list) or not all(type(one) in (str, int) for one in given):
        shown = quoted(row.get("labels" if several else "label"))
        raise UserError(
            f'{where}: "label" should be a name or a number, "labels" a list of them, not {shown}'
        )
    return tuple(given), several
