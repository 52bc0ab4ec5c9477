"""The logit lens (nostalgebraist 2020; 2303.08112): the next token if the model stopped after each block.

The residual stream after a block goes through the final norm and the head, as if later blocks added nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from cutaway.inspect.arrays import log_softmax
from cutaway.inspect.instrumented import Instrumented

LOGITS = 8 << 20  # computed at once: 32 MB


@dataclass(frozen=True, repr=False)
class Lens:
    """The likeliest token after the embedding and after each block (``names``, n of them).

    ``ids`` and ``probabilities`` [n t]; ``final`` [n t]: the probability, there, of the final answer.
    """

    names: tuple[str, ...]
    ids: np.ndarray
    probabilities: np.ndarray
    final: np.ndarray

    def __repr__(self) -> str:
        return f"Lens({len(self.names)} stages, {self.ids.shape[1]} tokens)"


def lens(engine: Instrumented, residuals: Mapping[str, np.ndarray], vocabulary: int | None = None) -> Lens:
    """The lens at every position of residuals [t d], over ids below ``vocabulary``; the last residual gives
    the final answer.
    """
    rows = np.stack(list(residuals.values()))
    answers = np.concatenate([part.argmax(-1) for part in _logits(engine, rows[-1], vocabulary)])
    wanted = np.tile(answers, len(rows))
    ids, probabilities, final = [], [], []
    done = 0
    for part in _logits(engine, rows.reshape(-1, rows.shape[-1]), vocabulary):
        best, each = part.argmax(-1), np.arange(len(part))
        highest, answer = part[each, best], part[each, wanted[done : done + len(part)]]
        total = np.exp(part - highest[:, None]).sum(-1)
        ids.append(best)
        probabilities.append(1 / total)
        final.append(np.exp(answer - highest) / total)
        done += len(part)
    columns = (np.concatenate(parts).reshape(rows.shape[:2]) for parts in (ids, probabilities, final))
    return Lens(tuple(residuals), *columns)


def divergences(
    engines: tuple[Instrumented, Instrumented],
    residuals: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
    vocabulary: int | None = None,
) -> np.ndarray:
    """float32 [n t]: the KL divergence in nats of the second model's lens from the first's at each stage."""
    stages = []
    for pair in zip(*(each.values() for each in residuals), strict=True):
        scored = [_logits(engine, rows, vocabulary) for engine, rows in zip(engines, pair, strict=True)]
        parts = []
        for both in zip(*scored, strict=True):
            p, q = (log_softmax(logits.astype(np.float64)) for logits in both)
            parts.append((np.exp(p) * (p - q)).sum(-1))
        stages.append(np.concatenate(parts))
    return np.stack(stages).astype(np.float32)


def _logits(engine: Instrumented, rows: np.ndarray, vocabulary: int | None) -> Iterator[np.ndarray]:
    """The logits of rows, some at once."""
    at_once = max(1, LOGITS // engine.config.vocab)
    for start in range(0, len(rows), at_once):
        yield engine.unembed(rows[start : start + at_once])[:, :vocabulary]
