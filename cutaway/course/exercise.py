"""An exercise, and how an answer to it is judged.

The reader writes one function. It is called with hidden arguments, and its result is compared with that of
the library's own function, the ``reference``. Where they differ, the first of these is the hint:

1. what any answer must have: a result, its type, its shape, finite numbers, arguments left as they were;
2. a ``Mistake``: a wrong function that gives this very result ("the scores were not divided by root d");
3. a ``Property`` that the right answer has and this one has not ("each row sums to 1").

A hint says what is wrong and never how the right code looks.
"""

from __future__ import annotations

import copy
import inspect
import re
import time
import traceback
import tracemalloc
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arguments = tuple[Any, ...]
CHANGED = "it changed one of its arguments: work on a copy"
# What numpy says of a product @ whose sizes differ: first the rows of the right factor.
MISFIT = re.compile(r"matmul: .* mismatch in its core dimension .*\(size (\d+) is different from (\d+)\)")


@dataclass(frozen=True)
class Property:
    """What the right answer has: ``holds(arguments, result)``, and the hint where it does not."""

    hint: str
    holds: Callable[[Arguments, Any], bool | np.bool_]


@dataclass(frozen=True)
class Mistake:
    """A fault that is often made: the function with it, and the hint that names it."""

    hint: str
    wrong: Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    ``number`` is "6.3". ``name`` and ``parameters`` are the function's; its stub has ``task`` as docstring,
    below ``imports`` and the code that is ``given``. ``cases(rng)`` yields hidden arguments, small ones
    first. ``judge``, instead of a reference, says what is wrong with a result, or None: for exercises that
    look for something in a real model. ``seconds`` bounds the whole check, after which the hint asks
    ``slow``; ``memory`` bounds the bytes that an answer takes on the last case, where that is the lesson,
    and ``large`` is what the hint asks then.
    """

    number: str
    title: str
    name: str
    parameters: str
    task: str
    cases: Callable[[np.random.Generator], Iterable[Arguments]]
    reference: Callable[..., Any] | None = None
    judge: Callable[[Arguments, Any], str | None] | None = None
    properties: Sequence[Property] = ()
    mistakes: Sequence[Mistake] = ()
    tolerance: float = 1e-6
    seconds: float = 60.0
    slow: str = "does a loop run for ever?"
    memory: int | None = None
    large: str = ""
    imports: str = "import numpy as np"
    given: str = ""  # code that the stub has above the function, for the reader to use

    @property
    def chapter(self) -> int:
        """The number before the dot."""
        return int(self.number.partition(".")[0])

    @property
    def stub(self) -> str:
        """The file that the reader completes."""
        task = "\n".join(f"    {line}".rstrip() for line in self.task.strip().splitlines())
        head = (
            f'"""Exercise {self.number}: {self.title}. Check it with `cutaway course check {self.number}`."""'
        )
        body = f'def {self.name}({self.parameters}):\n    """{task.strip()}\n    """\n'
        body += '    raise NotImplementedError("write this function")\n'
        first = f"{head}\n\n{self.imports}" if self.imports else head
        return "\n\n\n".join(part for part in (first, self.given.strip(), body) if part)


@dataclass(frozen=True)
class Verdict:
    """Whether an answer passed, and else its hint; the hidden cases that were tried; what was printed."""

    passed: bool
    hint: str = ""
    cases: int = 0
    seconds: float = field(default=0.0, compare=False)
    printed: str = field(default="", compare=False)


def check(exercise: Exercise, answer: Callable[..., Any], seed: int) -> Verdict:
    """Try an answer on hidden cases of a seed."""
    begun, tried = time.perf_counter(), 0
    failed: list[tuple[Arguments, Any, Any]] = []  # arguments, result, what the reference gives
    last: Arguments = ()
    of_numbers: list[str] = []
    for arguments in exercise.cases(np.random.default_rng(seed)):
        tried, last = tried + 1, arguments
        given = copy.deepcopy(arguments)
        result = _called(answer, given)
        if isinstance(result, NotImplementedError):
            return Verdict(False, f"nothing is written yet: {result}", tried)
        if isinstance(result, Exception):
            hint = f"it raised {raised(result, _file_of(answer))}"
        else:
            hint = _hint_of_any(exercise, arguments, given, result)
        if hint is not None:
            named = None if hint == CHANGED else _named(exercise, [*failed, (arguments, result, None)])
            shown = described(arguments, small=not _is_misfit(result))
            return Verdict(False, named or f"{hint} (arguments: {shown})", tried)
        if exercise.judge is not None:
            continue
        assert exercise.reference is not None
        right = exercise.reference(*copy.deepcopy(arguments))
        if not same(result, right, exercise.tolerance):
            failed.append((arguments, result, right))
        elif (other := _hint_of_numbers(result, right)) is not None:
            of_numbers.append(f"{other} (arguments: {described(arguments)})")
    if failed:
        return Verdict(False, _hint_of_difference(exercise, failed), tried)
    if of_numbers:
        return Verdict(False, of_numbers[0], tried)
    large = _hint_of_memory(exercise, answer, last)
    return Verdict(large is None, large or "", tried, time.perf_counter() - begun)


def _called(function: Callable[..., Any], arguments: Arguments) -> Any:
    """What it returns, or the exception that it raised; numpy's warnings are not shown."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*arguments)
        except Exception as error:
            return error
        except SystemExit as error:  # exit() would end the check
            return RuntimeError(f"it ends the program: exit({error.code!r})")


def _hint_of_any(exercise: Exercise, arguments: Arguments, given: Arguments, result: Any) -> str | None:
    """What is wrong with a result whatever the exercise: none, changed arguments, type, shape, NaN."""
    if result is None:
        return "it returned None: is there a return?"
    if exercise.judge is not None:
        return exercise.judge(arguments, result)
    if not same(given, arguments, 0.0):
        return CHANGED
    assert exercise.reference is not None
    right = exercise.reference(*copy.deepcopy(arguments))
    if isinstance(right, np.ndarray):
        found = np.asarray(result)
        if found.dtype == object or (
            not np.issubdtype(found.dtype, np.number) and not np.issubdtype(found.dtype, np.bool_)
        ):
            return f"the result should be an array of numbers, and is {type(result).__name__}"
        if found.shape != right.shape:
            return f"the result has shape {found.shape}, and {right.shape} is asked for"
        if np.isfinite(right).all() and not np.isfinite(found).all():
            return "the result has infinite numbers or NaN: is there a division by 0, or an exp of too much?"
    elif isinstance(right, bool | int | float | np.number):
        if not isinstance(result, bool | int | float | np.number) and np.ndim(result) != 0:
            return f"the result should be one number, and is {type(result).__name__}"
        if np.isfinite(right) and not np.isfinite(float(result)):
            return "the result is infinite or NaN: is there a division by 0, or a log of 0?"
    elif isinstance(right, str) != isinstance(result, str) or isinstance(right, Mapping) != isinstance(
        result, Mapping
    ):
        return f"the result should be of type {type(right).__name__}, and is {type(result).__name__}"
    elif isinstance(right, tuple) and not isinstance(result, tuple | list):
        return f"the result should have {len(right)} parts, and is of type {type(result).__name__}"
    elif isinstance(right, tuple) and len(right) != len(result):
        return f"the result should have {len(right)} parts, and has {len(result)}"
    elif isinstance(right, tuple):
        for n, (part, own) in enumerate(zip(result, right, strict=True), 1):
            if isinstance(own, np.ndarray) and np.shape(part) != own.shape:
                return f"part {n} of the result has shape {np.shape(part)}, and {own.shape} is asked for"
    elif isinstance(right, list) and not isinstance(result, list | tuple | np.ndarray):
        return f"the result should be of type list, and is {type(result).__name__}"
    return None


def _hint_of_numbers(result: Any, right: Any) -> str | None:
    """What is wrong with the kind of numbers, whose values are right: booleans and whole numbers index."""
    if isinstance(right, tuple):
        return next(filter(None, map(_hint_of_numbers, result, right)), None)
    if not isinstance(right, np.ndarray):
        return None
    found = np.asarray(result).dtype
    for kind, name in ((np.bool_, "booleans, True or False"), (np.integer, "whole numbers")):
        if np.issubdtype(right.dtype, kind) and not np.issubdtype(found, kind):
            return f"the values are right, but the entries should be {name}, and are {found}"
    return None


def _hint_of_difference(exercise: Exercise, failed: Sequence[tuple[Arguments, Any, Any]]) -> str:
    """The mistake or the property that names the fault; else where the numbers differ."""
    named = _named(exercise, failed)
    if named is not None:
        return named
    for wanted in exercise.properties:
        for arguments, result, _ in failed:
            if not _holds(wanted, arguments, result):
                return f"{wanted.hint} (arguments: {described(arguments)})"
    arguments, result, right = failed[0]
    return f"the result differs from the reference{_place(result, right)} (arguments: {described(arguments)})"


def _named(exercise: Exercise, failed: Sequence[tuple[Arguments, Any, Any]]) -> str | None:
    """The hint of the mistake that gives all wrong results, if one does."""
    for mistake in exercise.mistakes:
        if all(_gives(mistake, arguments, result, exercise.tolerance) for arguments, result, _ in failed):
            return mistake.hint
    return None


def _holds(wanted: Property, arguments: Arguments, result: Any) -> bool:
    try:
        return bool(wanted.holds(copy.deepcopy(arguments), result))
    except Exception:  # a result of another kind than the property looks at has it not
        return False


def _gives(mistake: Mistake, arguments: Arguments, result: Any, tolerance: float) -> bool:
    found = _called(mistake.wrong, copy.deepcopy(arguments))
    if isinstance(found, Exception) or isinstance(result, Exception):
        return type(found) is type(result) and str(found) == str(result)
    return same(result, found, tolerance)


def _hint_of_memory(exercise: Exercise, answer: Callable[..., Any], arguments: Arguments) -> str | None:
    """Where memory is the lesson: what the answer allocates at once on the last case is bounded."""
    if exercise.memory is None:
        return None
    given = copy.deepcopy(arguments)
    tracemalloc.start()
    try:
        answer(*given)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    if peak <= exercise.memory:
        return None
    hint = f"it is right, and takes {peak / 1e6:.1f} MB at once: {exercise.memory / 1e6:.1f} MB are asked for"
    return f"{hint}; {exercise.large}" if exercise.large else hint


def same(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two results are equal: numbers within a tolerance of the largest, all else exactly."""
    if isinstance(one, Mapping) or isinstance(other, Mapping):
        return (
            isinstance(one, Mapping)
            and isinstance(other, Mapping)
            and one.keys() == other.keys()
            and all(same(one[key], other[key], tolerance) for key in one)
        )
    if isinstance(one, str | bytes) or isinstance(other, str | bytes):
        return type(one) is type(other) and one == other
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if callable(one) or callable(other) or not _numeric(one) or not _numeric(other):
        return one is other or (not _numeric(one) and not _numeric(other) and type(one) is type(other))
    a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if a.shape != b.shape:
        return False
    most = float(np.max(np.abs(b[np.isfinite(b)]), initial=1.0))
    return bool(np.allclose(a, b, rtol=0.0, atol=tolerance * most, equal_nan=True))


def _numeric(value: Any) -> bool:
    """Whether it is a number or an array of numbers."""
    if isinstance(value, bool | int | float | np.number):
        return True
    try:
        kind = np.asarray(value).dtype
    except (TypeError, ValueError):
        return False
    return np.issubdtype(kind, np.number) or np.issubdtype(kind, np.bool_)


def _place(result: Any, right: Any) -> str:
    """The index at which two results differ most, without the right value."""
    if isinstance(right, np.ndarray) and right.ndim:
        gap = np.abs(np.asarray(result, dtype=np.float64) - right)
        at = np.unravel_index(int(np.nanargmax(np.where(np.isnan(gap), np.inf, gap))), gap.shape)
        shown = ", ".join(map(str, at))
        return f", most at [{shown}], where it is {float(np.asarray(result)[at]):.4g}"
    if isinstance(right, list | tuple) and isinstance(result, list | tuple):
        at = next(
            (n for n, (a, b) in enumerate(zip(result, right, strict=False)) if not same(a, b, 1e-6)), None
        )
        if at is None:
            return f": it has {len(result)} entries, and {len(right)} are asked for"
        return f", first at entry {at}, which is {shortened(result[at])}"
    return f": it is {shortened(result)}"


def raised(error: BaseException, file: str) -> str:
    """An exception by its kind, the last line of the reader's file that led to it, and its words."""
    lines = [
        number for frame, number in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file
    ]
    where = f" in line {lines[-1]}" if lines else ""
    if _is_misfit(error) and (sizes := MISFIT.search(str(error))):
        rows, columns = sizes.groups()
        return (
            f"ValueError{where}: in a product @, {columns} columns meet {rows} rows: is one not transposed?"
        )
    return f"{type(error).__name__}{where}: {error}".rstrip(": ")


def _file_of(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_filename if code is not None else ""


def _is_misfit(result: Any) -> bool:
    """Whether it is numpy's error of a product @ whose sizes differ, which shapes explain, not numbers."""
    return isinstance(result, ValueError) and MISFIT.search(str(result)) is not None


def described(arguments: Arguments, small: bool = True) -> str:
    """The arguments of a hidden case, as far as they are short: arrays by shape, unless ``small`` ones are
    shown and they are tiny.
    """
    return ", ".join(
        f"array{list(one.shape)}" if isinstance(one, np.ndarray) and not small else shortened(one)
        for one in arguments
    )


def shortened(value: Any) -> str:
    """A value in at most 120 characters."""
    if isinstance(value, np.ndarray):
        text = np.array2string(value, precision=3, separator=", ").replace("\n", "")
        return text if value.size <= 6 else f"array{list(value.shape)}"
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return f"{value:.6g}"
    text = repr(value) if not callable(value) else getattr(value, "__name__", "a function")
    return text if len(text) <= 120 else f"{text[:110]}... ({type(value).__name__})"
