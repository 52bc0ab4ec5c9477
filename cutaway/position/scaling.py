"""How RoPE's frequencies are stretched so that a model reads further than it was trained to. Imports no
torch.

A scaling with ``stretch`` is the same for every text. One with ``at`` depends on how long the text has
become: its keys turn differently as the text grows, so what was read before is not what would be read now,
and no cache can make "continued" equal "read again" past the ``original`` length. Its type says so, and a
state then keeps keys unturned.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Linear:
    """Position interpolation (2306.15595): every position is divided by ``factor``."""

    factor: float

    @property
    def magnitude(self) -> float:
        return 1.0

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        return frequencies / self.factor


@dataclass(frozen=True)
class NTK:
    """A larger base, base * factor^(d / (d - 2)): the slowest pair is interpolated, the fastest hardly
    touched.
    """

    factor: float

    @property
    def magnitude(self) -> float:
        return 1.0

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        return frequencies * self.factor ** -_ramp(len(frequencies))


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1's scaling (2407.21783): slow pairs are interpolated, fast pairs kept, those between are
    blended.

    A pair that turns fewer than ``low`` times in the ``original`` context is slowed by ``factor``; one that
    turns more than ``high`` times is left alone.
    """

    factor: float
    low: float
    high: float
    original: int

    @property
    def magnitude(self) -> float:
        return 1.0

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        turns = self.original * frequencies / (2 * np.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return kept * frequencies + (1 - kept) * frequencies / self.factor


@dataclass(frozen=True)
class YaRN:
    """YaRN (2309.00071): as Llama 3's, but blended evenly over the pairs' indices, and scores sharpened by
    length.

    Pairs that turn more than ``fast`` times in the ``original`` context are kept, those under ``slow`` times
    slowed by ``factor``. Cosine and sine are multiplied by ``magnitude``: 0.1 ln factor + 1, or ``attention``
    where it is given (DeepSeek: the ratio of ``sharpening`` by its two mscale numbers). ``whole`` widens the
    blend to whole pairs.
    """

    factor: float
    original: int
    fast: float = 32.0
    slow: float = 1.0
    attention: float | None = None
    whole: bool = True

    @property
    def magnitude(self) -> float:
        return sharpening(self.factor) if self.attention is None else self.attention

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        n = len(frequencies)
        low, high = self._pair(frequencies, self.fast), self._pair(frequencies, self.slow)
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * n - 1)
        slowed = np.clip((np.arange(n) - low) / (high - low or 0.001), 0.0, 1.0)
        return (1 - slowed) * frequencies + slowed * frequencies / self.factor

    def _pair(self, frequencies: np.ndarray, turns: float) -> float:
        """The index, not whole, of the pair that turns so many times in the original context."""
        step = math.log(frequencies[0] / frequencies[1])
        return math.log(self.original * frequencies[0] / (turns * 2 * math.pi)) / step


@dataclass(frozen=True)
class Factors:
    """A divisor for each pair, as a file states them (GGUF's ``rope_freqs`` tensor)."""

    divisors: tuple[float, ...]

    @property
    def magnitude(self) -> float:
        return 1.0

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        return frequencies / np.asarray(self.divisors)


@dataclass(frozen=True)
class Proportional:
    """Only the fastest ``share`` of all pairs turns, the others stand still (Gemma 4). ``factor`` slows those
    that turn.

    Not a partial rotation: the pairs are (i, i + k/2) and the exponents 2i/k of the whole head.
    """

    share: float
    factor: float = 1.0

    @property
    def magnitude(self) -> float:
        return 1.0

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        turning = np.arange(len(frequencies)) < int(self.share * len(frequencies))
        return np.where(turning, frequencies / self.factor, 0.0)


@dataclass(frozen=True)
class DynamicNTK:
    """NTK whose factor grows with the text: f length / original - (f - 1) once it is longer than
    ``original``.
    """

    factor: float
    original: int

    @property
    def magnitude(self) -> float:
        return 1.0

    def at(self, frequencies: Any, length: Any) -> Any:
        """Frequencies [r] for a text of this length, numbers or tensors alike."""
        longer = length > self.original
        factor = 1.0 + longer * self.factor * (length / self.original - 1.0)
        return frequencies * factor ** -_like(_ramp(len(frequencies)), frequencies)


@dataclass(frozen=True)
class LongRoPE:
    """LongRoPE (2402.13753): searched divisors for each pair, one set up to ``original`` tokens and one past
    them.

    Cosine and sine are multiplied by sqrt(1 + ln factor / ln original), or ``attention`` where it is given.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    factor: float
    attention: float | None = None

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
    """YaRN's answer to softer scores in longer texts: 0.1 mscale ln factor + 1."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _ramp(pairs: int) -> np.ndarray:
    """2i / (d - 2) for each pair i of d = 2 pairs: by which power of a factor its frequency falls."""
    return np.arange(pairs, dtype=np.float64) / max(pairs - 1, 1)


def _like(numbers: np.ndarray, other: Any) -> Any:
    """The same numbers as ``other`` is: a numpy array, or a tensor on its device."""
    return numbers if isinstance(other, np.ndarray) else other.new_tensor(numbers.tolist())
