"""The chapters of the course, found by their files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path

from cutaway.course.exercise import Exercise, Mistake
from cutaway.errors import UserError


@dataclass(frozen=True)
class Chapter:
    """One chapter: the question that it answers, and its exercises in order."""

    number: int
    title: str
    question: str
    exercises: tuple[Exercise, ...]


@cache
def chapters() -> tuple[Chapter, ...]:
    """All chapters, in order."""
    numbers = sorted(int(path.stem.partition("_")[2]) for path in Path(__file__).parent.glob("chapter_*.py"))
    return tuple(chapter(number) for number in numbers)


@cache
def chapter(number: int) -> Chapter:
    """One chapter. UserError for a number that none has."""
    try:
        module = import_module(f"cutaway.course.chapter_{number}")
    except ModuleNotFoundError as error:
        if error.name != f"cutaway.course.chapter_{number}":
            raise
        raise UserError(f"there is no chapter {number}: `cutaway course list` lists them") from None
    return Chapter(number, module.TITLE, module.QUESTION, tuple(map(_with_more, module.EXERCISES)))


def _with_more(exercise: Exercise) -> Exercise:
    """The exercise with the mistakes that are made of the right answer, after its own."""
    from cutaway.course.mistakes_blocks import BLOCKS
    from cutaway.course.mistakes_merges import MERGES
    from cutaway.course.mistakes_text import TEXT
    from cutaway.course.mistakes_vectors import VECTORS

    more = (TEXT | MERGES | VECTORS | BLOCKS).get(exercise.number, {})
    made = [Mistake(hint, partial(wrong, exercise.reference)) for hint, wrong in more.items()]
    return replace(exercise, mistakes=(*exercise.mistakes, *made))


def exercise(number: str) -> Exercise:
    """An exercise by its number, such as "6.3". UserError for one that is not there."""
    first = number.partition(".")[0]
    if first.isdecimal():
        own = {one.number: one for one in chapter(int(first)).exercises}
        if number in own:
            return own[number]
        numbers = list(own)
        if number == first:
            raise UserError(f"{number} is a chapter: write an exercise of it, {numbers[0]} to {numbers[-1]}")
        raise UserError(f"there is no exercise {number}: chapter {first} has {numbers[0]} to {numbers[-1]}")
    raise UserError(f"{number!r} is no exercise's number: write chapter and exercise, such as 6.3")
