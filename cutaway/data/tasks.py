"""Tasks that a program verifies: questions to train on, others held out, and a scorer of answers.

    reasoning_gym:chain_sum      a task of reasoning-gym, which writes its questions and answers by a seed
    programs:spelling            a program of data/programs/, or several: programs:spelling+dates
    score.py:function            function(answer, row) -> float, for the rows of a file of prompts
    reward_model:FOLDER          a trained reward model, likewise (train/recipes/rewards.py opens it)

The held-out questions are none of the training ones, by their text. reasoning-gym writes item i by seed + i,
so that neighbouring seeds share all items but one: here the seeds of training and of test are far apart.
A reward is the score, which must be a finite number. ``accuracy`` counts an answer as right if its score is
``RIGHT`` or more.
"""

from __future__ import annotations

import importlib.util
import math
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from cutaway.data.expressions import evaluates, harmless
from cutaway.data.programs import registry
from cutaway.data.programs.item import reward
from cutaway.data.rows import rows
from cutaway.errors import OperationalError, UserError, escaped, quoted
from cutaway.extras import library

RIGHT = 0.99
HELD_OUT = 1 << 40  # the seed of the first held-out item, above those of every run's training items
HELD_OUT_SMALL = 1 << 31
NONSENSE, SCREENED = "x" * 300, 8  # an answer that must not be right, and the questions it is tried on
TRIES = 8  # held-out items drawn for each one wanted, before a task counts as too small
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
Score = Callable[[str, Any], float]


class ScorerError(UserError):
    """A reward or a judge that raises, or that gives no number: named, with the line where it happened."""


@dataclass(frozen=True)
class Problem:
    """A question, the task's own answer where it has one, and what the scorer reads."""

    question: str
    answer: str | None
    item: Any = field(repr=False, compare=False)


@dataclass(frozen=True)
class RewardTask:
    """Problems to train on and held-out ones, which share no question; ``shared`` were left out for that.

    The scorer reads a completion as it is, or what ``extract`` finds in it, where it ``extracts``.
    """

    name: str
    train: tuple[Problem, ...]
    test: tuple[Problem, ...]
    shared: int
    scorer: Score
    extracts: bool = True

    def score(self, text: str, problem: Problem) -> float:
        """The reward of a whole completion."""
        return graded(self.name, self.scorer, extract(text) if self.extracts else text, problem.item)

    def floor(self) -> float:
        """The accuracy on the held-out problems of always giving training's commonest answer."""
        answers = Counter(problem.answer for problem in self.train if problem.answer is not None)
        if not answers or not self.test:
            return 0.0
        commonest = answers.most_common(1)[0][0]
        return sum(self.score(commonest, problem) >= RIGHT for problem in self.test) / len(self.test)


def graded(name: str, function: Callable[..., Any], *given: Any) -> float:
    """The number that a reward or a judge of this name gives. ScorerError where it raises or gives none."""
    try:
        found = function(*given)
    except (UserError, OperationalError):
        raise
    except (Exception, SystemExit) as error:
        raise ScorerError(f"{name}: {_raised(error, function)}; it was given {quoted(given[0])}") from error
    try:
        value = math.nan if isinstance(found, str | bytes) else float(found)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        value = math.nan
    if not math.isfinite(value):
        raise ScorerError(
            f"{name}: gave {quoted(found)} and no finite number; it was given {quoted(given[0])}"
        )
    return value


def _raised(error: BaseException, function: Any) -> str:
    """What was raised, and in which line of the function's file."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file] or frames[-1:]
    return (
        f"raised {type(error).__name__} ({escaped(str(error))}) in {own[-1].filename}, line {own[-1].lineno}"
    )


def extract(text: str) -> str:
    """What is inside the last <answer> tags, or all of the text; without spaces around it."""
    tagged = TAGGED.findall(text)
    return (tagged[-1] if tagged else text).strip()


def load(
    name: str,
    train: int,
    test: int,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    path: str | None = None,
    scorer: Score | None = None,
) -> RewardTask:
    """The task of this name, with so many training and held-out problems.

    ``options`` are reasoning-gym's settings of the task. ``path`` is the file of prompts that a Python
    function scores, or ``scorer``, which reads whole completions. Raises UserError for a task that is unknown
    or has too few distinct questions.
    """
    kind, _, own = name.rpartition(":")
    if kind == "reasoning_gym":
        if path is not None:
            raise UserError(f"{name} writes its own questions: leave data.path out")
        return _reasoning_gym(own, train, test, seed, options or {})
    if kind == "programs":
        if path is not None or options:
            raise UserError(f"{name} writes its own questions: leave data.path and data.options out")
        return _programs(own, train, test, seed)
    if scorer is None and not kind.endswith(".py"):
        raise UserError(
            f"{name}: is no task: write reasoning_gym:NAME, programs:NAME, reward_model:FOLDER, or "
            "file.py:function for one of your own"
        )
    if path is None:
        raise UserError(f"{name} scores answers and has no questions: name a file of them with --data")
    if options:
        raise UserError(f"{name} takes no data.options: they are reasoning-gym's")
    made = _scored(name, scorer or function_of(kind, own), train, test, path)
    return replace(made, extracts=scorer is None)


def _programs(names: str, train: int, test: int, seed: int) -> RewardTask:
    """Items of programs, in turns; those that ask a tool are none of a task that is sampled without tools."""
    chosen = names.split("+")
    sides = []
    for count, held_out in ((train, False), (test, True)):
        each = -(-count // len(chosen))
        drawn = [registry.items(one, each, seed, held_out=held_out) for one in chosen]
        sides.append([item for turn in zip(*drawn, strict=True) for item in turn][:count])
    if any(item.expression is not None for item in sides[0]):
        raise UserError(f"programs:{names}: asks the calculator, and answers are sampled without tools")
    parts = [
        tuple(Problem(item.question, item.answer, {"answer": item.answer}) for item in side) for side in sides
    ]
    return RewardTask(f"programs:{names}", parts[0], parts[1], 0, reward)


def _reasoning_gym(name: str, train: int, test: int, seed: int, options: Mapping[str, Any]) -> RewardTask:
    reasoning_gym = library("such a task", "reasoning_gym")
    known = library("such a task", "reasoning_gym.factory").DATASETS
    if name not in known:
        raise UserError(
            f"reasoning_gym:{name}: reasoning-gym has no such task; known: {', '.join(sorted(known))}"
        )

    def drawn(first: int, size: int) -> Any:
        try:
            return reasoning_gym.create_dataset(name, seed=first, size=size, **options)
        except (TypeError, AssertionError, ValueError) as error:
            raise UserError(f"reasoning_gym:{name}: {error}; check data.options") from None

    def problems(items: Iterable[dict[str, Any]]) -> Iterator[Problem]:
        for item in items:
            yield Problem(item["question"].strip(), item["answer"], item)

    training = drawn(seed * train, train)
    try:
        held_out = drawn(HELD_OUT, TRIES * test)
        held_out[0]
    except ValueError:  # a task that draws with NumPy takes no larger seed
        held_out = drawn(HELD_OUT_SMALL, TRIES * test)

    guarded = evaluates(type(training).score_answer)

    def score(text: str, item: Any) -> float:
        if guarded and not harmless(text):  # it would run as Python, here
            return 0.0
        try:
            return training.score_answer(text, item)
        except Exception:  # some of its scorers raise on an answer that they cannot read: it is wrong
            return 0.0

    for n in range(min(train, SCREENED)):
        if score(NONSENSE, training[n]) < RIGHT:
            break
    else:
        raise UserError(
            f"reasoning_gym:{name}: reasoning-gym's scorer takes {len(NONSENSE)} times the letter x for a "
            "right answer, so that its figures say nothing: choose another task"
        )
    return _split(
        f"reasoning_gym:{name}",
        tuple(problems(training[n] for n in range(train))),
        problems(held_out[n] for n in range(TRIES * test)),
        test,
        score,
    )


def function_of(file: str, function: str) -> Callable[..., Any]:
    """A function of a Python file, which is run. UserError for a file without it."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None or not Path(file).is_file():
        raise UserError(f"{file}: there is no such file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{file}: is no Python: {error.msg}, in line {error.lineno}") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"{file}: cannot be run: {_raised(error, None)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"{file}: has no function {function!r}")
    return found


def _scored(name: str, scorer: Score, train: int, test: int, path: str) -> RewardTask:
    """The questions of a file, of which the last are held out."""
    found = []
    for where, row in rows(path):
        if not isinstance(row.get("prompt"), str):
            raise UserError(f'{where}: has no text under "prompt"')
        answer = row.get("answer")
        found.append(Problem(row["prompt"].strip(), None if answer is None else str(answer), row))
    if len(found) <= test:
        raise UserError(f"{path}: has {len(found)} prompts, of which data.test holds {test} out: lower it")
    cut = len(found) - test
    return _split(name, tuple(found[:cut][:train]), iter(found[cut:]), test, scorer)


def _split(
    name: str, train: tuple[Problem, ...], candidates: Iterator[Problem], test: int, scorer: Score
) -> RewardTask:
    """Held-out problems from the candidates, none with a question of training or of another one."""
    seen = {problem.question for problem in train}
    shared = 0

    def fresh() -> Iterator[Problem]:
        nonlocal shared
        for problem in candidates:
            if problem.question in seen:
                shared += 1
                continue
            seen.add(problem.question)
            yield problem

    held_out = tuple(islice(fresh(), test))
    if test and not held_out:
        raise UserError(
            f"{name}: every held-out question is in the {len(train):,} of training too: lower data.prompts, "
            "or make the task's questions more varied with data.options"
        )
    return RewardTask(name, train, held_out, shared, scorer)
