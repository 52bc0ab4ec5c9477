"""What a run cost (time, energy, money, carbon by stated figures), its machine, and its calibration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from cutaway.native import library
from cutaway.pipeline.config import Costs


def machine(threads: int) -> dict[str, Any]:
    """The processor, and how much of it was used."""
    return {"processor": library.processor(), "cores": os.cpu_count(), "threads": threads or os.cpu_count()}


def counted(given: Costs, seconds: float, energy: Mapping[str, float] | None) -> dict[str, Any]:
    """Time, energy (measured, or the stated power times the time), money and carbon."""
    hours = seconds / 3600
    measured = sum(energy.values()) / 3.6e6 if energy else None
    kwh = given.watts / 1000 * hours if measured is None else measured
    return {
        "seconds": seconds,
        "kwh": kwh,
        "energy": "measured by RAPL"
        if measured is not None
        else f"{given.watts:g} W, stated, times the time",
        "money": given.price_per_hour * hours,
        "price": f"{given.price_per_hour:g} {given.currency} an hour, stated",
        "currency": given.currency,
        "carbon_grams": kwh * given.grams_per_kwh,
        "carbon": f"{given.grams_per_kwh:g} g of CO2 a kWh, stated",
    }


def calibrated(lm: Any, text: str, tokens: int, bins: int) -> dict[str, Any]:
    """The likeliest next token's probability beside how often it is right, on at most so many tokens.

    ``error`` is the expected calibration error: the mean distance of both, weighed by how many are in a bin.
    """
    ids = lm.ids(text)[:tokens]
    window = lm.context
    sure: list[np.ndarray] = []
    right: list[np.ndarray] = []
    for start in range(0, len(ids) - 1, window):
        part = ids[start : start + window]
        if len(part) < 2:
            break
        logits = np.asarray(lm.logits(part), np.float64)[:-1]
        logits -= logits.max(-1, keepdims=True)
        odds = np.exp(logits)
        sure.append(odds.max(-1) / odds.sum(-1))
        right.append(logits.argmax(-1) == np.array(part[1:]))
    if not sure:
        return {}
    p, hit = np.concatenate(sure), np.concatenate(right).astype(np.float64)
    place = np.minimum((p * bins).astype(int), bins - 1)
    found = [
        {
            "p": float(p[place == n].mean()),
            "right": float(hit[place == n].mean()),
            "n": int((place == n).sum()),
        }
        for n in range(bins)
        if (place == n).any()
    ]
    error = sum(one["n"] * abs(one["p"] - one["right"]) for one in found) / len(p)
    return {"bins": found, "error": error, "tokens": len(p)}
