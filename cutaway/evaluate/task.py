"""The parts of an evaluation task: questions, exercises, tool calls, labels, or a text to predict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from cutaway.generate.thinking.strategy import last_line


@dataclass(frozen=True)
class Question:
    """A text and what may follow it; ``choices[answer]`` is right. Each choice follows the text as it is.

    ``cluster`` names what a question shares with others, for their standard error.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int
    cluster: str | None = None


@dataclass(frozen=True)
class Exercise:
    """What a user asks, and how good an answer is: 1 is right, 0 wrong; between them is partly right."""

    prompt: str
    check: Callable[[str], float] = field(compare=False)
    cluster: str | None = None


@dataclass(frozen=True)
class AgentExercise:
    """An exercise that may call built-in ``tools``, by name: what counts is the answer after the calls."""

    prompt: str
    check: Callable[[str], float] = field(compare=False)
    tools: tuple[str, ...] = ("calculator",)
    cluster: str | None = None


@dataclass(frozen=True)
class Labelled:
    """A text, or a pair of texts, and its labels by name or number; ``several``: it may have any number."""

    text: str
    pair: str | None
    labels: tuple[str | int, ...]
    several: bool
    cluster: str | None = None

    @property
    def prompt(self) -> str:
        """All that decides the right answer, as one text."""
        return json.dumps([self.text, self.pair, self.labels], ensure_ascii=False)


@dataclass(frozen=True)
class ToolExercise:
    """A user's question and tools, which are declared as OpenAI's API does.

    ``right(name, arguments)`` judges a call: whether the tool is right, and whether the arguments are. None:
    no call is right, for no tool fits.
    """

    question: str
    tools: tuple[dict[str, Any], ...]
    right: Callable[[str, dict[str, Any]], tuple[bool, bool]] | None = field(compare=False)
    expected: str = ""
    cluster: str | None = None

    @property
    def prompt(self) -> str:
        """All that decides the right answer, as one text."""
        return json.dumps([self.question, self.tools, self.expected])


Constrained = Literal["lazy", "required", "free"]


@dataclass(frozen=True)
class EvaluationTask:
    """Questions, exercises or tool exercises; ``chance`` is the accuracy of guessing, or of the
    commonest answer.

    ``max_tokens`` bounds the answers to exercises, ``extract`` finds what to vote on in one. ``source`` says
    where the data are from. ``calls``: a call is held to the schemas once it begins, an answer must be one,
    or nothing is held.
    """

    name: str
    source: str
    items: (
        tuple[Question, ...]
        | tuple[Exercise, ...]
        | tuple[AgentExercise, ...]
        | tuple[ToolExercise, ...]
        | tuple[Labelled, ...]
    )
    chance: float
    max_tokens: int = 256
    extract: Callable[[str], str | None] = field(default=last_line, compare=False)
    calls: Constrained = "lazy"

    @property
    def prompt_hash(self) -> str:
        """16 hexadecimal digits that all prompts, choices and answers decide."""
        seen = [[x.prompt, *((x.choices, x.answer) if isinstance(x, Question) else ())] for x in self.items]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Text:
    """A text to predict, in one document or more, each read from its beginning."""

    name: str
    source: str
    documents: tuple[str, ...]
