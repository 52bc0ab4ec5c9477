"""Axes: from values to pixels, the numbers beside them, and how a number is written (charts/scales.js)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cutaway.page.charts import Axis
from cutaway.page.svg.drawing import text_width

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"))


def brief(value: float | None) -> str:
    """A number with the digits that four figures need: 0.0123, 3.142, 12,345, 1.5M."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e15 or size < 1e-4:
        power = math.floor(math.log10(size))
        factor = _trimmed(f"{value / 10**power:.2f}")
        return _tens(power) if factor == "1" else _minus(f"{factor} × {_tens(power)}")
    for unit, name in UNITS:
        if size >= unit:
            return _minus(_trimmed(_four(value / unit)) + name)
    return _minus(f"{round(value):,}" if size >= 1000 else _trimmed(_four(value)))


def _four(value: float) -> str:
    return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text


def _minus(text: str) -> str:
    return text.replace("-", "−", 1) if text.startswith("-") else text


def _tens(power: int) -> str:
    return "10" + str(power).translate(SUPERSCRIPT)


def titled(axis: Axis) -> str:
    """What an axis shows, with its unit."""
    return f"{axis.title} ({axis.unit})" if axis.unit else axis.title


def finite(values: Iterable[Any], log: bool = False) -> list[float]:
    """The values that can be drawn."""
    return [v for v in values if v is not None and math.isfinite(v) and (not log or v > 0)]


def domain(axis: Axis, values: Iterable[Any]) -> tuple[float, float]:
    """The ends of an axis: what it asks for, else the values with a little room."""
    known = finite(values, axis.log)
    low = axis.low if axis.low is not None else min(known, default=0.0)
    high = axis.high if axis.high is not None else max(known, default=1.0)
    if not low < high:
        low, high = (
            (low / 2 or 0.1, high * 2 or 10)
            if axis.log
            else (low - (abs(low) * 0.1 or 1), high + (abs(high) * 0.1 or 1))
        )
    if axis.log:
        room = (high / low) ** 0.04
        return axis.low or low / room, axis.high or high * room
    room = (high - low) * 0.05
    begin = 0.0 if low >= 0 > low - room else low - room
    return begin if axis.low is None else axis.low, high + room if axis.high is None else axis.high


def ticks(low: float, high: float, count: int, log: bool, whole: bool = False) -> list[tuple[float, str]]:
    """The values that an axis is marked at, about ``count`` of them, each with its text; ``whole`` numbers
    where it has no others.
    """
    if log:
        return _log_ticks(low, high, count)
    rough = max((high - low) / max(1, count), float(whole))
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one for one in (1, 2, 5, 10) if one * power >= rough * 0.999) * power
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    large = max(abs(low), abs(high)) >= 1e6 or digits > 4
    begin, end = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    values = [n * step for n in range(begin, end + 1)]
    return [
        (
            v,
            brief(v)
            if large
            else _minus(
                f"{v + 0.0:,.{digits}f}".replace("-0", "0") if abs(v) < step / 2 else f"{v:,.{digits}f}"
            ),
        )
        for v in values
    ]


def _log_ticks(low: float, high: float, count: int) -> list[tuple[float, str]]:
    begin, end = math.log10(low), math.log10(high)
    factors = (1, 2, 3, 5, 7) if end - begin < 1.2 else (1, 3) if end - begin < 3 else (1,)
    small = begin < -4  # brief() has powers of ten below 0.0001: then all of them are, in one notation
    found = []
    for power in range(math.floor(begin), math.floor(end) + 1):
        for factor in factors:
            value = factor * 10.0**power
            if low * 0.999 <= value <= high * 1.001:
                found.append(
                    (value, _tens(power) if len(factors) == 1 and (power > 5 or small) else brief(value))
                )
    return found[:: max(1, math.ceil(len(found) / max(1, count)))]


def scale(ends: tuple[float, float], pixels: tuple[float, float], log: bool) -> Callable[[float], float]:
    """The pixel of a value."""
    at: Callable[[float], float] = math.log if log else float
    a, b = at(ends[0]), at(ends[1])
    return lambda value: pixels[0] + (at(value) - a) / (b - a) * (pixels[1] - pixels[0])


def shortened(text: str, width: float) -> str:
    """The text, or its begin with an ellipsis where it is too wide."""
    if text_width(text) <= width:
        return text
    while len(text) > 1 and text_width(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def wrapped(text: str, width: float) -> list[str]:
    """A text in lines that are not wider."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def widest(texts: Sequence[str]) -> float:
    """The width of the widest text."""
    return max(map(text_width, texts), default=0.0)
