"""How a score depends on the distance of two tokens, by a model's own position encodings: RoPE and ALiBi."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.page.charts import Axis, Plot, Series, Table
from cutaway.page.report import Report, Text
from cutaway.position import alibi, rope

STEPS = 12  # distances that are drawn between 1 and 10, 10 and 100, ...
NEAR = 0.1  # a drawn score is the mean over distances up to so much larger, between which it swings
PAIRS = 8  # in a table, with the fastest and the slowest


@dataclass(frozen=True)
class Curve:
    """What one scheme does to a score: multiplies it (RoPE) or adds to it (ALiBi), by distance."""

    name: str
    distances: list[int]
    values: list[float]


@dataclass(frozen=True)
class Scheme:
    """RoPE in some layers of a model, or ALiBi, which lowers a head's score by so much a token."""

    layers: str
    rotary: rope.Config | None = None
    lowered: tuple[float, ...] = ()

    def curves(self, farthest: int) -> list[Curve]:
        """The mean score by distance; of ALiBi of the steepest, the middle and the flattest head."""
        far = spaced(farthest)
        if self.rotary is not None:
            name = f"base {self.rotary.base:,.0f}{self.layers}"
            return [Curve(name, far, [swung(self.rotary, distance, farthest) for distance in far])]
        chosen = sorted({0, len(self.lowered) // 2, len(self.lowered) - 1})
        return [
            Curve(
                f"head {h}: {-self.lowered[h]:.3g} a token{self.layers}",
                far,
                [-self.lowered[h] * d for d in far],
            )
            for h in chosen
        ]


def spaced(farthest: int) -> list[int]:
    """Distances from 1 to the farthest, evenly apart in logarithms."""
    last = math.ceil(STEPS * math.log10(max(farthest, 1)))
    return sorted({min(round(10 ** (k / STEPS)), farthest) for k in range(last + 1)})


def swung(rotary: rope.Config, distance: int, length: int = 0) -> float:
    """The score at a distance: the mean over distances up to a tenth larger."""
    near = np.arange(distance, max(distance + 1, round((1 + NEAR) * distance)))
    return round(float(rotary.agreement(near, length).mean()), 4)


def schemes(config: Any) -> list[Scheme]:
    """The different position encodings of a model's layers. UserError where none acts on a distance."""
    found: dict[tuple[rope.Config | alibi.Config, int], list[int]] = {}
    for layer, block in enumerate(config.blocks):
        own = getattr(block.attention, "position", None)
        if own is None and isinstance(getattr(block.attention, "relative", None), alibi.Config):
            own = block.attention.relative
        if isinstance(own, rope.Config | alibi.Config):
            found.setdefault((own, getattr(block.attention, "heads", 0)), []).append(layer)
    if not found:
        raise UserError(
            "no layer of this model has RoPE or ALiBi, whose scores depend on the distance: "
            "`cutaway info` says what it has"
        )
    made = []
    for (own, heads), layers in found.items():
        which = f", {len(layers)} layers from {layers[0]}" if len(found) > 1 else ""
        if isinstance(own, rope.Config):
            made.append(Scheme(which, own))
        else:
            made.append(Scheme(which, lowered=tuple(own.slopes(heads))))
    return made


def with_bases(config: Any, bases: Sequence[float]) -> list[Scheme]:
    """The first rotary encoding of a model with each of these bases. UserError where it has none."""
    rotary = next((one.rotary for one in schemes(config) if one.rotary is not None), None)
    if rotary is None:
        raise UserError("--base is RoPE's, and this model has ALiBi: leave --base out")
    return [Scheme("", replace(rotary, base=base)) for base in bases]


def pairs(rotary: rope.Config, length: int) -> list[list[float]]:
    """Some pairs, fastest first: number, radians a token, and tokens of a whole rotation."""
    speeds = rotary.frequencies(length)[: rotary.size // rotary.copies // 2]
    chosen = sorted({round(n) for n in np.linspace(0, len(speeds) - 1, min(PAIRS, len(speeds)))})
    turns = [(n, float(speeds[n])) for n in chosen]
    return [[n, speed, 2 * math.pi / speed if speed else math.inf] for n, speed in turns]


def plot(curves: Sequence[Curve], added: bool) -> Plot:
    """The curves as one chart."""
    title, y = ("What a score loses with distance", Axis("added to the score"))
    if not added:
        title, y = "The score of two equal vectors falls with their distance", Axis("score, 1 at distance 0")
    series = [Series(curve.name, curve.distances, curve.values) for curve in curves]
    note = "" if added else "All numbers of both vectors are equal. Means over a tenth of a distance."
    return Plot(title, Axis("distance in tokens", log=True), y, series, note=note)


def report(name: str, found: Sequence[Scheme], farthest: int) -> Report:
    """A page: the curves, and how fast pairs of numbers turn."""
    parts: list[Any] = [Text(f"Position by distance in {name}, up to {farthest:,} tokens.")]
    for added in (False, True):
        curves = [c for one in found if (one.rotary is None) == added for c in one.curves(farthest)]
        if curves:
            parts.append(plot(curves, added))
    for one in found:
        if one.rotary is not None:
            rows = [[f"{n:.0f}", speed, turn] for n, speed, turn in pairs(one.rotary, farthest)]
            title = f"Pairs of numbers, base {one.rotary.base:,.0f}{one.layers}"
            parts.append(Table(title, ["pair", "radians a token", "tokens of a turn"], rows))
    return Report(f"Position by distance: {name}", parts)
