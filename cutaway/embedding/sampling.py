"""Subsampling of frequent words and negative samples, as word2vec draws them (1310.4546).

Random numbers are SplitMix64's, so that the native core (native/core/random.hpp) draws the same.
"""

from __future__ import annotations

import numpy as np

MASK = (1 << 64) - 1


class Random:
    """SplitMix64: the state counts up, a mixing function makes it random."""

    def __init__(self, seed: int) -> None:
        self.state = seed & MASK

    def next(self) -> int:
        """64 random bits."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = ((self.state ^ (self.state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)


def below(drawn: int, count: int) -> int:
    """A number under ``count``, of the upper 32 bits."""
    return ((drawn >> 32) * count) >> 32


def unit(drawn: int) -> float:
    """A number in [0, 1), of the lower 24 bits."""
    return (drawn & 0xFFFFFF) / (1 << 24)


def kept(counts: np.ndarray, sample: float) -> np.ndarray:
    """The chance that a word of frequency f is kept: sqrt(t / f) + t / f, float32 [v]; all for ``sample`` 0.

    The paper prints sqrt(t / f); its authors' program adds t / f, and every implementation follows that.
    """
    if sample == 0:
        return np.ones(len(counts), np.float32)
    ratio = sample * counts.sum() / counts
    return np.minimum(np.sqrt(ratio) + ratio, 1).astype(np.float32)


def noise(counts: np.ndarray, power: float = 0.75) -> tuple[np.ndarray, np.ndarray]:
    """Walker's alias table of counts ** power: ``chance`` float32 [v] and ``other`` int32 [v].

    To draw a word take a cell, keep it with its ``chance``, else take its ``other``.
    """
    weights = counts.astype(np.float64) ** power
    scaled = weights / weights.sum() * len(counts)
    chance, other = np.ones(len(counts)), np.arange(len(counts), dtype=np.int32)
    small = [i for i, s in enumerate(scaled) if s < 1]
    large = [i for i, s in enumerate(scaled) if s >= 1]
    while small and large:
        less, more = small.pop(), large[-1]
        chance[less], other[less] = scaled[less], more
        scaled[more] -= 1 - scaled[less]
        if scaled[more] < 1:
            small.append(large.pop())
    return chance.astype(np.float32), other


def draw(random: Random, chance: np.ndarray, other: np.ndarray) -> int:
    """A word of the noise."""
    drawn = random.next()
    cell = below(drawn, len(chance))
    return cell if unit(drawn) < chance[cell] else int(other[cell])
