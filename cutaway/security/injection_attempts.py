"""Prompt injections into the one-field task: every style, delimiters, the question again, a suffix."""

from collections.abc import Callable, Sequence

from cutaway.security.cases import EVASIONS, STYLES, Case
from cutaway.security.defences import struq


def attempts(delimiters: Sequence[str], suffix: str | None = None) -> dict[str, Callable[[Case], str]]:
    """What the attacker sends: texts by the name of the attempt."""
    made: dict[str, Callable[[Case], str]] = {
        f"{style}, {how}": lambda case, style=style, how=how: case.attacked(style, 0, how)
        for style in STYLES
        for how in EVASIONS
    }
    mark, end = delimiters[0], delimiters[-1]
    inside = mark[: len(mark) // 2] + end + mark[len(mark) // 2 :]
    made |= {
        "delimiters": lambda case: f"{case.text}{mark}{struq.ordered(case, 'ignore', case.word)}{end}",
        "nested delimiters": lambda case: f"{case.text}{inside}{struq.ordered(case, 'ignore', case.word)}",
        "question repeated": lambda case: f"{case.text}\n{struq.ordered(case, 'correction', case.word)}",
    }
    return made if suffix is None else made | {"searched suffix": followed_by(suffix)}


def followed_by(suffix: str) -> Callable[[Case], str]:
    """A plain attack with a suffix behind it."""
    return lambda case: f"{case.attacked('correction', 0)} {suffix}"
