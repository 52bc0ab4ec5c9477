"""The direction along which a model refuses (2406.11717), found, taken out and put in.

    r_l   =  mean of x_l over refused prompts - over answered ones, at the last token, after layer l
    out:     x - r r'x after every layer           in:  x + r_l after layer l

The layer is the one whose r, taken out, has the least log p(refusal) - log p(answer) on prompts of its own;
the last fifth of the layers and those that move harmless prompts by more than MOST nats (KL) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.generate.sample import log_softmax, mask_padding
from cutaway.inspect.edits import Add, Edit, Project
from cutaway.lm import LanguageModel

MOST = 0.1
TRIED = 8  # layers, spread over the model
TOGETHER = 8
Ids = Sequence[int]


@dataclass(frozen=True)
class Direction:
    """A layer, r float64 [d] as it is found, and what taking it out does: log-odds of refusal, KL in nats."""

    layer: int
    vector: np.ndarray
    odds: float
    divergence: float

    def removed(self, layers: int) -> list[Edit]:
        """The edits that take it out of the residual stream after every layer."""
        return [Project(layer, self.vector.tolist()) for layer in range(layers)]

    def added(self, strength: float = 1.0) -> list[Edit]:
        """The edit that adds it after its layer."""
        return [Add(self.layer, self.vector.tolist(), strength=strength)]


def differences(lm: LanguageModel, refused: Sequence[Ids], answered: Sequence[Ids]) -> np.ndarray:
    """float64 [layers d]: r of every layer."""
    means = [residuals(lm, prompts).mean(0) for prompts in (refused, answered)]
    return means[0] - means[1]


def residuals(lm: LanguageModel, prompts: Sequence[Ids]) -> np.ndarray:
    """float64 [n layers d]: the residual stream after each layer, at each prompt's last token."""
    traces: Any = lm.trace([list(ids) for ids in prompts], names=["blocks.*.out"])
    config: Any = lm.config
    rows = [traces.at(f"blocks.{layer}.out", -1) for layer in range(len(config.blocks))]
    return np.stack(rows, 1).astype(np.float64)


def find(
    lm: LanguageModel,
    refused: Sequence[Ids],
    answered: Sequence[Ids],
    judged: Sequence[Ids],
    harmless: Sequence[Ids],
    refusal: int,
    answer: int,
) -> Direction:
    """The direction of the best layer; ``refusal`` and ``answer`` are the first ids of the two answers."""
    vectors = differences(lm, refused, answered)
    layers = len(vectors)
    usual = next_log_probs(lm, harmless)
    found = []
    early = set(range(math.ceil(0.8 * layers)))
    for layer in sorted({round(n) for n in np.linspace(0, int(0.8 * layers), TRIED)} & early):
        one = Direction(layer, vectors[layer], 0.0, 0.0)
        edit = one.removed(layers)
        rows = next_log_probs(lm, judged, edit)
        odds = float((rows[:, refusal] - rows[:, answer]).mean())
        moved = next_log_probs(lm, harmless, edit)
        found.append(
            Direction(layer, vectors[layer], odds, float((np.exp(usual) * (usual - moved)).sum(1).mean()))
        )
    kept = [one for one in found if one.divergence <= MOST] or [min(found, key=lambda one: one.divergence)]
    return min(kept, key=lambda one: one.odds)


def next_log_probs(lm: LanguageModel, prompts: Sequence[Ids], edit: Sequence[Edit] = ()) -> np.ndarray:
    """float64 [n v]: log p of what comes after each prompt, with edits, by the engine that makes edits."""
    out = []
    for start in range(0, len(prompts), TOGETHER):
        some = [list(ids) for ids in prompts[start : start + TOGETHER]]
        edited = [lm.edited_engine(list(edit), ids) for ids in some]
        states, last = [one.new_state() for one in edited], np.cumsum([len(ids) for ids in some]) - 1
        out.append(edited[0].engine.read(some, states, last.tolist()).copy())
    rows = np.concatenate(out)[:, : len(lm.tokenizer)]
    return np.stack([log_softmax(mask_padding(row, len(lm.tokenizer))) for row in rows]).astype(np.float64)


def surprise(lm: LanguageModel, ids: Ids, edit: Sequence[Edit] = ()) -> float:
    """Mean -log p of a text's ids in nats, with edits; e to it is the perplexity."""
    logits = lm.logits(list(ids), list(edit) or None)
    rows = np.stack([log_softmax(mask_padding(row, len(lm.tokenizer))) for row in logits[:-1]])
    return -float(rows[np.arange(len(ids) - 1), list(ids[1:])].mean())
