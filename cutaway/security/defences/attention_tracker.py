"""Attention Tracker (2411.00348): an attack draws attention from the instruction to the text.

    A of a head = weight of the last token on the instruction / (on the instruction + on the text)

Heads are kept whose mean A on clean prompts exceeds that on attacked ones by K (sd + sd); a prompt's score is
minus their mean A.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cutaway.lm import LanguageModel

K = (3.0, 2.0, 1.0, 0.5, 0.0)  # the first under which a head is left
TOGETHER = 8  # prompts in one call of the engine
Prompt = tuple[Sequence[int], range, range]  # ids, and where the instruction and the text are
Scorer = Callable[[Sequence[Prompt]], np.ndarray]


def detector(lm: LanguageModel, attacks: Sequence[Prompt], clean: Sequence[Prompt]) -> Scorer:
    """The scorer of prompts, its heads chosen on these."""
    bad, good = (shares(lm, each) for each in (attacks, clean))
    gap, spread = good.mean(0) - bad.mean(0), good.std(0) + bad.std(0)
    chosen = next((found for k in K if (found := gap > k * spread).any()), gap == gap.max())
    return lambda prompts: -shares(lm, prompts)[:, chosen].mean(1)


def shares(lm: LanguageModel, prompts: Sequence[Prompt]) -> np.ndarray:
    """float [n, layers * heads]: each head's A."""
    out = []
    for start in range(0, len(prompts), TOGETHER):
        some = prompts[start : start + TOGETHER]
        for rows, (_, instruction, text) in zip(last_attention(lm, [p[0] for p in some]), some, strict=True):
            on, off = rows[:, instruction].sum(1), rows[:, text].sum(1)
            out.append(on / (on + off).clip(1e-9))
    return np.array(out)


def last_attention(lm: LanguageModel, texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """float32 [layers * heads, t] of each text: the attention weights of its last token."""
    engine: Any = lm.engine
    ends, layers = (np.cumsum([len(ids) for ids in texts]) - 1).tolist(), range(engine.layers)
    states = [engine.resume([]) for _ in texts]
    at = [(end, layer) for end in ends for layer in layers]
    _, weights = engine.watch(texts, states, ends, [engine.layers - 1] * len(texts), at)
    return [np.concatenate(weights[n * len(layers) : (n + 1) * len(layers)]) for n in range(len(texts))]
