"""Numbers within bounds: the check that every part of a training configuration runs on itself."""

from __future__ import annotations

import math
from typing import Any

from cutaway.errors import UserError


def check(config: Any, where: str, **intervals: str) -> None:
    """UserError for a field outside its interval, "[0, 1)" or "(0, inf)"; None and empty tuples pass.

    ``where`` is the path of ``config`` in a run's YAML file, "optimizer." for instance.
    """
    for name, interval in intervals.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number is not None and not _inside(number, interval):
                raise UserError(f"config.{where}{name}: expected {_words(interval)}, found {number}")


def _ends(interval: str) -> tuple[float, float]:
    low, high = interval[1:-1].split(",")
    return float(low), float(high)


def _inside(number: float, interval: str) -> bool:
    low, high = _ends(interval)
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    return math.isfinite(number) and above and below


def _words(interval: str) -> str:
    low, high = _ends(interval)
    least = f"of at least {low:g}" if interval[0] == "[" else f"above {low:g}"
    if high == math.inf:
        return f"a number {least}"
    most = f"at most {high:g}" if interval[-1] == "]" else f"below {high:g}"
    return f"a number {least} and {most}"
