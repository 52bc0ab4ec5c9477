"""Attack a model that was trained to refuse: its questions, and which attempts succeed on which."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.evaluate import statistics
from cutaway.lm import LanguageModel
from cutaway.security import gcg, refusal
from cutaway.security.refusal import Question, messages
from cutaway.store.files import write_file
from cutaway.store.reading import parsed

SEARCHED = 2  # questions that a suffix is searched on; it is tried on others


@dataclass
class Target:
    """One of the models, and what is known of it: its questions, suffixes, and which attempts worked."""

    lm: LanguageModel
    seed: int
    folder: Path
    refused: list[Question]
    allowed: list[Question]
    suffixes: dict[str, gcg.Found] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)  # of the refused questions, by attempt
    hits: dict[str, np.ndarray] = field(default_factory=dict)
    plain: np.ndarray = field(default_factory=lambda: np.empty(0, bool))

    def tried(self, attempt: str, texts: list[str]) -> np.ndarray:
        """bool [n]: which of the refused questions an attempt gets an answer to."""
        self.texts[attempt] = texts
        self.hits[attempt] = complied(self.lm, self.refused, texts)
        return self.hits[attempt]

    def search(self, kind: str, settings: gcg.GCGSettings, **options: Any) -> gcg.Found:
        """A suffix searched on questions of its own, kept in the folder."""
        path, key = self.folder / f"suffix-{kind.replace(' ', '-')}.json", [asdict(settings), SEARCHED]
        if path.is_file() and (known := parsed(path)).get("key") == key:
            found = gcg.Found(**known["found"] | {"losses": tuple(known["found"]["losses"])})
        else:
            prompts = [prompt(self.lm, question) for question in self.searched]
            found = gcg.search(self.lm, prompts, settings, seed=self.seed, **options)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps({"key": key, "found": asdict(found)}, indent=1))
        self.suffixes[kind] = found
        return found

    @property
    def searched(self) -> list[Question]:
        """The questions that suffixes are searched on."""
        return refusal.questions(np.random.default_rng((self.seed, 3)), "refused", SEARCHED, held_out=False)


def prompt(lm: LanguageModel, question: Question) -> gcg.Prompt:
    """The conversation with a suffix after the question, for the search."""
    return gcg.Prompt(
        lambda suffix: lm.chat_ids(messages(f"{question.text} {suffix}")),
        tuple(lm.tokenizer.encode(question.target)[:3]),
    )


def followed_by(asked: Sequence[Question], suffix: str) -> list[str]:
    """The questions with a suffix."""
    return [f"{question.text} {suffix}" for question in asked]


def complied(lm: LanguageModel, asked: Sequence[Question], texts: Sequence[str]) -> np.ndarray:
    """bool [n]: whether the answer to each text has its question's canary."""
    made = refusal.answers(lm, [messages(text) for text in texts])
    return np.array([refusal.complies(one, answer) for one, answer in zip(asked, made, strict=True)])


def pooled(values: Sequence[Any]) -> np.ndarray:
    """The models' values in one row."""
    return np.concatenate([np.asarray(one) for one in values])


def some(table: np.ndarray) -> np.ndarray:
    """bool [n]: the questions that some attempt of a table [attempts n] opens."""
    return np.asarray(table.any(0))


def rate(values: Sequence[Any]) -> statistics.Estimate:
    """The mean of the models' values."""
    return statistics.mean(pooled(values))
