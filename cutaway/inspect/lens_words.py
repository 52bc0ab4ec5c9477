"""The likeliest tokens that a lens shows at one position of a text, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.inspect import lenses
from cutaway.inspect.arrays import largest, softmax
from cutaway.inspect.trace_values import TraceValues


@dataclass(frozen=True)
class LensToken:
    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class LensWords:
    """After one stage: the likeliest tokens, best first, and the probability there of the final answer."""

    name: str
    tokens: tuple[LensToken, ...]
    final: float


def words(trace: TraceValues, by: Any = "logit", position: int = -1, top: int = 3) -> list[LensWords]:
    """The top tokens of a lens (``trace.lens``) at each of its stages."""
    trace._check_position(position)
    streams = {name: rows[position][None] for name, rows in trace.residuals().items()}
    found = lenses.find(by, trace.subject)
    read = streams if found is None else found.translated(streams)
    engine, count = trace.instrumented, trace.vocabulary
    answer = int(engine.unembed([*streams.values()][-1])[0, :count].argmax())
    made = []
    for name, row in read.items():  # a layer's logits at a time
        chances = softmax(engine.unembed(np.ascontiguousarray(row, np.float32))[0, :count])
        best = largest(chances, top).tolist()
        tokens = tuple(LensToken(id, trace.token(id), float(chances[id])) for id in best)
        made.append(LensWords(name, tokens, float(chances[answer])))
    return made
