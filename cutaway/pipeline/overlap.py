"""What training data share with evaluations: whole items, and sequences of eight words of them.

A program's questions share their phrasing, so that of its held-out items whole questions count; of other
evaluations each sequence of eight words in a document does too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from cutaway.evaluate import task_registry
from cutaway.evaluate.task import Labelled, Text

WORDS = 8
HELD_OUT = "held-out "
WORD = re.compile(r"\w+")


class Index:
    """The items of every evaluation, and what of them was found."""

    def __init__(self) -> None:
        self.items: dict[tuple[str, ...], str] = {}
        self.sequences: dict[tuple[str, ...], list[tuple[str, int]]] = {}
        self.sizes: Counter[tuple[str, int]] = Counter()
        self.counts: dict[str, Counter[str]] = {}

    def add(self, evaluation: str, prompts: Sequence[str]) -> None:
        """The items of an evaluation."""
        counts = self.counts.setdefault(evaluation, Counter())
        counts["items"] += len(prompts)
        for n, prompt in enumerate(prompts):
            words = _words(prompt)
            self.items[tuple(words)] = evaluation
            if not evaluation.startswith(HELD_OUT):
                own = _sequences(words)
                for sequence in own:
                    self.sequences.setdefault(sequence, []).append((evaluation, n))
                self.sizes[evaluation, n] = max(1, len(own))

    def is_item(self, question: str) -> bool:
        """Whether a question is an item; it is counted as left out."""
        evaluation = self.items.get(tuple(_words(question)))
        if evaluation is not None:
            self.counts[evaluation]["questions_left_out"] += 1
        return evaluation is not None

    def of(self, document: str, most: float) -> bool:
        """Whether a document has more than ``most`` of an item's sequences; what it shares is counted."""
        found: Counter[tuple[str, int]] = Counter()
        for sequence in _sequences(_words(document)):
            items = self.sequences.get(sequence, ())
            found.update(items)
            for evaluation in {evaluation for evaluation, _ in items}:
                self.counts[evaluation]["sequences_shared"] += 1
        over = {item[0] for item, count in found.items() if count > most * self.sizes[item]}
        for evaluation in over:
            self.counts[evaluation]["documents_left_out"] += 1
        return bool(over)

    def report(self) -> dict[str, dict[str, int]]:
        """Each evaluation's items, and what of them was found and left out."""
        fields = ("items", "questions_left_out", "documents_left_out", "sequences_shared")
        return {name: {field: counts[field] for field in fields} for name, counts in self.counts.items()}


def prompts(task: str) -> list[str]:
    """The prompts of an evaluation's items, or its documents."""
    found: Any = task_registry.find(task)
    if isinstance(found, Text):
        return list(found.documents)
    return [item.text if isinstance(item, Labelled) else item.prompt for item in found.items]


def _sequences(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + WORDS]) for at in range(len(words) - WORDS + 1)}


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())
