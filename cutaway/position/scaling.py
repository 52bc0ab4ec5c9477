"""RoPE scaling (linear, NTK, YaRN, LongRoPE): slower frequencies for longer texts. Imports no torch.

A scaling with ``stretch`` is the same for every text. One with ``at`` depends on the text's length: its keys
rotate differently as the text grows, and past the ``original`` length no cache can make "continued" equal
"read again". Its type says so, and a KV cache then holds keys before rotation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.bounds import Bounded, Count, Fraction, Positive
from cutaway.errors import UserError


class _Scaling(Bounded):
    """``magnitude``: what cosine and sine are multiplied by."""

    @property
    def magnitude(self) -> float:
        return 1.0


@dataclass(frozen=True)
class Linear(_Scaling):
    """Position interpolation (2306.15595): every position is divided by ``factor``."""

    factor: Positive

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        return frequencies / self.factor


@dataclass(frozen=True)
class NTK(_Scaling):
    """A larger base, base * factor^(d / (d - 2)): slow pairs are interpolated, fast ones hardly."""

    factor: Positive

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        return frequencies * self.factor ** -_ramp(len(frequencies))


@dataclass(frozen=True)
class Llama3(_Scaling):
    """Llama 3.1's scaling (2407.21783): slow pairs are interpolated, fast ones kept, others blended.

    A pair of fewer than ``low`` turns in the ``original`` context is slowed by ``factor``; one of more than
    ``high`` turns is kept.
    """

    factor: Positive
    low: Positive
    high: Positive
    original: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high < self.low:
            raise UserError(f"position.high is {self.high}; it must not be less than low ({self.low})")

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        turns = self.original * frequencies / (2 * np.pi)
        if self.high == self.low:  # nothing is blended (Llama 4 Scout)
            kept = (turns >= self.low).astype(np.float64)
        else:
            kept = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return kept * frequencies + (1 - kept) * frequencies / self.factor


@dataclass(frozen=True)
class YaRN(_Scaling):
    """YaRN (2309.00071): as Llama 3's, blended over the pairs' indices, with sharper scores.

    Pairs of more than ``fast`` turns in the ``original`` context are kept, those under ``slow`` turns are
    slowed by ``factor``. Cosine and sine are multiplied by ``magnitude``: 0.1 ln factor + 1, or ``attention``
    where it is given (DeepSeek: the ratio of ``sharpening`` by its two mscale numbers). ``whole`` widens the
    blend to whole pairs.
    """

    factor: Positive
    original: Count
    fast: Positive = 32.0
    slow: Positive = 1.0
    attention: Positive | None = None
    whole: bool = True

    @property
    def magnitude(self) -> float:
        return sharpening(self.factor) if self.attention is None else self.attention

    def ends(self, frequencies: np.ndarray) -> tuple[float, float]:
        """The first and the last pair, which may be a fraction, of those that are blended."""
        low, high = self._pair(frequencies, self.fast), self._pair(frequencies, self.slow)
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        return max(low, 0), min(high, 2 * len(frequencies) - 1)

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        n, (low, high) = len(frequencies), self.ends(frequencies)
        slowed = np.clip((np.arange(n) - low) / (high - low or 0.001), 0.0, 1.0)
        return (1 - slowed) * frequencies + slowed * frequencies / self.factor

    def _pair(self, frequencies: np.ndarray, turns: float) -> float:
        """The index, a fraction, of the pair with so many turns in the original context."""
        step = math.log(frequencies[0] / frequencies[1])
        return math.log(self.original * frequencies[0] / (turns * 2 * math.pi)) / step


@dataclass(frozen=True)
class Factors(_Scaling):
    """A divisor for each pair, as a file states them (GGUF's ``rope_freqs`` tensor)."""

    divisors: tuple[Positive, ...]

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        return frequencies / np.asarray(self.divisors)


@dataclass(frozen=True)
class Proportional(_Scaling):
    """Only the fastest ``fraction`` of all pairs rotates (Gemma 4), slowed by ``factor``.

    Not a partial rotation: the pairs are (i, i + k/2) and the exponents 2i/k of the whole head.
    """

    fraction: Fraction
    factor: Positive = 1.0

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        rotating = np.arange(len(frequencies)) < int(self.fraction * len(frequencies))
        return np.where(rotating, frequencies / self.factor, 0.0)


@dataclass(frozen=True)
class DynamicNTK(_Scaling):
    """NTK whose factor grows with the text, f length / original - (f - 1), past ``original`` tokens."""

    factor: Positive
    original: Count

    def at(self, frequencies: Any, length: Any) -> Any:
        """Frequencies [r] for a text of this length, numbers or tensors alike."""
        longer = length > self.original
        factor = 1.0 + longer * self.factor * (length / self.original - 1.0)
        return frequencies * factor ** -_like(_ramp(len(frequencies)), frequencies)


@dataclass(frozen=True)
class LongRoPE(_Scaling):
    """LongRoPE (2402.13753): divisors of each pair, ``short`` up to ``original`` tokens, else ``long``.

    Cosine and sine are multiplied by sqrt(1 + ln factor / ln original), or ``attention`` where it is given.
    """

    short: tuple[Positive, ...]
    long: tuple[Positive, ...]
    original: Count
    factor: Positive
    attention: Positive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.original == 1 and self.factor > 1 and self.attention is None:
            raise UserError("position.original is 1; a factor of attention needs 2 at least")

    @property
    def magnitude(self) -> float:
        if self.attention is not None:
            return self.attention
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original)) if self.factor > 1 else 1.0

    def at(self, frequencies: Any, length: Any) -> Any:
        """Frequencies [r] for a text of this length, numbers or tensors alike."""
        longer = length > self.original
        short, long = (_like(np.asarray(divisors), frequencies) for divisors in (self.short, self.long))
        return frequencies / (short + longer * (long - short))


Scaling = Linear | NTK | Llama3 | YaRN | Factors | Proportional | DynamicNTK | LongRoPE
GROWING = DynamicNTK | LongRoPE


def sharpening(factor: float, mscale: float = 1.0) -> float:
    """YaRN's factor against softer scores in longer texts: 0.1 mscale ln factor + 1."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _ramp(pairs: int) -> np.ndarray:
    """2i / (d - 2) for each pair i of d dimensions: its frequency falls by this power of the factor."""
    return np.arange(pairs, dtype=np.float64) / max(pairs - 1, 1)


def _like(numbers: np.ndarray, other: Any) -> Any:
    """The same numbers as ``other`` is: a numpy array, or a tensor on its device."""
    return numbers if isinstance(other, np.ndarray) else other.new_tensor(numbers.tolist())
