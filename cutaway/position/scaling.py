"""How RoPE's frequencies are stretched so that a model reads further than it was trained to. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Linear:
    """Position interpolation (2306.15595): every position is divided by ``factor``."""

    factor: float

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3:
    """Llama 3.1's scaling (2407.21783): slow pairs are interpolated, fast pairs kept, those between are blended.

    A pair that turns fewer than ``low`` times in the ``original`` context is slowed by ``factor``; one that turns more
    than ``high`` times is left alone.
    """

    factor: float
    low: float
    high: float
    original: int

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        turns = self.original * frequencies / (2 * np.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return kept * frequencies + (1 - kept) * frequencies / self.factor


@dataclass(frozen=True)
class Factors:
    """A divisor for each pair, as a file states them (GGUF's ``rope_freqs`` tensor)."""

    divisors: tuple[float, ...]

    def stretch(self, frequencies: np.ndarray) -> np.ndarray:
        return frequencies / np.asarray(self.divisors)


Scaling = Linear | Llama3 | Factors
