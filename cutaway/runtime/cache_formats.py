"""Number formats of the KV cache: halves, or groups of 32 whole numbers that share a scale.

    Q8_0    scale = max|x| / 127 as a half         q = x / scale, -127 to 127
    Q4_0    scale = m / -8 as a half               q = x / scale, -8 to 7; m: the number of largest magnitude

A head's last group may be shorter. What is read back is q times the scale. The reference implementation of
native/runtime/attention.cpp's `store_key` and `store_value`, to the bit.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from cutaway.errors import UserError

Kind = Literal["F16", "Q8_0", "Q4_0"]
KINDS = ("F16", "Q8_0", "Q4_0")  # by native/runtime/attention.hpp's numbers
GROUP, MOST, LANES = 32, np.float32(65504), 16
BITS = {"F16": 16, "Q8_0": 8, "Q4_0": 4}


def check(kind: str) -> None:
    """UserError for a kind that is none."""
    if kind not in KINDS:
        raise UserError(f"kv_cache {kind!r} is not known: use one of {', '.join(KINDS)}")


def halves(kind: Kind, size: int) -> int:
    """Halves that the keys or values of a position take, with their scales."""
    if kind == "F16":
        return size
    filled = -(-size // GROUP) * GROUP
    return filled * BITS[kind] // 16 + filled // GROUP


def paired(x: np.ndarray) -> np.ndarray:
    """Values [... g v] of both halves of the heads, two side by side: [... g/2 2v] (differential)."""
    return np.concatenate(np.split(x, 2, axis=-2), axis=-1)


def stored_pairs(x: np.ndarray, kind: Kind) -> np.ndarray:
    """Values [... g v] as they are read back where two are kept side by side."""
    return np.concatenate(np.split(stored(paired(x), kind), 2, axis=-1), axis=-2)


def latent_row(x: np.ndarray, latent: int) -> np.ndarray:
    """A latent and the rotated key behind it [... c+r] as the cache lays them out: each in whole sixteens."""
    parts = x[..., :latent], x[..., latent:]
    wide = [(*((0, 0) for _ in x.shape[:-1]), (0, -part.shape[-1] % LANES)) for part in parts]
    return np.concatenate([np.pad(*one) for one in zip(parts, wide, strict=True)], axis=-1)


def stored_latent(x: np.ndarray, latent: int, kind: Kind) -> np.ndarray:
    """A latent and the rotated key [... c+r] as they are read back."""
    row, size = stored(latent_row(x, latent), kind), x.shape[-1] - latent
    second = latent + -latent % LANES
    return np.concatenate([row[..., :latent], row[..., second : second + size]], axis=-1)


def stored(x: np.ndarray, kind: Kind) -> np.ndarray:
    """Keys or values [... n] as they are read back: float16 for F16, else float32."""
    if kind == "F16":
        return x.astype(np.float16)
    size = x.shape[-1]
    groups = np.zeros((*x.shape[:-1], -(-size // GROUP) * GROUP), np.float32)
    groups[..., :size] = x
    groups = groups.reshape(*x.shape[:-1], -1, GROUP)
    at = np.abs(groups).argmax(-1)[..., None]  # the first, of equal ones
    most = np.take_along_axis(groups, at, -1)
    wanted = np.abs(most) / np.float32(127) if kind == "Q8_0" else most / np.float32(-8)
    scale = np.clip(wanted, -MOST, MOST).astype(np.float16).astype(np.float32)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    low, high = (-127, 127) if kind == "Q8_0" else (-8, 7)
    q = np.clip(np.rint(groups * inverse), low, high).astype(np.float32)
    return (q * scale).reshape(*x.shape[:-1], -1)[..., :size]
