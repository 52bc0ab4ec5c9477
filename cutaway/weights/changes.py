"""How an adapter is merged into one weight.

    LoRA (2106.09685)     W' = W + s B A       s = alpha / r, or alpha / sqrt(r) (rsLoRA, 2312.03732)
    DoRA (2402.09353)     W' = m (W + s B A) / |W + s B A|, the norm of each row
    IA3 (2205.05638)      W' = diag(l) W, or W diag(l) where l scales what a matrix reads (feed-forward)
    added                 W' = W + v, of a bias
    saved                 W' = what is stored, whole

Other methods are one of these: AdaLoRA, VeRA, LoHa and LoKr are pairs too (``weights/pairs.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cutaway.errors import UserError


@dataclass(frozen=True)
class LowRank:
    """W' = W + scale B A with A [r in], B [out r]; with a ``magnitude`` [out] it is DoRA's."""

    a: np.ndarray
    b: np.ndarray
    scale: float
    magnitude: np.ndarray | None = None

    @property
    def delta(self) -> np.ndarray:
        """What LoRA adds, [out in]."""
        return np.float32(self.scale) * (self.b @ self.a)

    def __call__(self, weight: np.ndarray) -> np.ndarray:
        if self.magnitude is None:
            return weight + self.delta
        return (weight + self.delta) * self.factor(weight)[:, None]

    def factor(self, weight: np.ndarray) -> np.ndarray:
        """DoRA's magnitude / norm of each row, float32 [out]."""
        norm = np.linalg.norm((weight + self.delta).astype(np.float64), axis=1)
        return (self.magnitude / norm).astype(np.float32)


@dataclass(frozen=True)
class Scaled:
    """W' = diag(l) W for ``side`` "out", W diag(l) for "in"."""

    factors: np.ndarray
    side: Literal["out", "in"]

    def __call__(self, weight: np.ndarray) -> np.ndarray:
        if self.side == "in":
            return weight * self.factors
        return weight * self.factors.reshape(-1, *(1,) * (weight.ndim - 1))  # a bias too


@dataclass(frozen=True)
class Added:
    """W' = W + the values."""

    values: np.ndarray

    def __call__(self, weight: np.ndarray) -> np.ndarray:
        return weight + self.values


@dataclass(frozen=True)
class Saved:
    """W' = the stored weight."""

    weight: np.ndarray

    def __call__(self, weight: np.ndarray) -> np.ndarray:
        if weight.shape != self.weight.shape:
            raise UserError(
                f"an adapter's weight has the shape {self.weight.shape}, the base's {weight.shape}"
            )
        return self.weight


Change = LowRank | Scaled | Added | Saved
Adapter = Mapping[str, Change]  # by our names of weights


def digest(adapter: Adapter) -> bytes:
    """What tells adapters apart: a hash of all that they change."""
    from hashlib import blake2b  # which loads OpenSSL: only where there is an adapter

    made = blake2b(digest_size=16)
    for name, change in sorted(adapter.items()):
        made.update(f"{name} {type(change).__name__}\n".encode())
        for field, value in vars(change).items():
            is_array = isinstance(value, np.ndarray)
            made.update(f"{field} {(value.shape, value.dtype.str) if is_array else value!r}\n".encode())
            if is_array:
                made.update(np.ascontiguousarray(value).tobytes())
    return made.digest()


def check(change: Change, shape: tuple[int, ...], where: str) -> None:
    """UserError unless the change fits a weight of this shape and is finite."""
    arrays: list[np.ndarray] = [value for value in vars(change).values() if isinstance(value, np.ndarray)]
    if not all(np.isfinite(array).all() for array in arrays):
        raise UserError(f"{where}: holds a number that is NaN or infinite")
    if isinstance(change, LowRank):
        fits = change.a.ndim == change.b.ndim == len(shape) == 2
        fits = fits and (change.b.shape[0], change.a.shape[1]) == shape
        fits = fits and change.b.shape[1] == change.a.shape[0]
        fits &= change.magnitude is None or change.magnitude.shape == shape[:1]
    elif isinstance(change, Scaled):
        fits = len(change.factors) == shape[0 if change.side == "out" else 1]
    elif isinstance(change, Added):
        fits = change.values.shape == shape
    else:
        fits = change.weight.shape == shape
    if not fits:
        raise UserError(f"{where}: does not fit the base's matrix of {shape[0]} x {shape[-1]}")
