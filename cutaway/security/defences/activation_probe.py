"""A linear probe on the residual stream: whether the model itself takes a prompt for a request it refuses.

Logistic regression on the residual stream after some layers, at the prompt's last token, each layer's part at
norm 1. It reads what the model made of the text, so another wording of the same request is the same to it,
as long as the model understands it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cutaway.lm import LanguageModel
from cutaway.security.defences import classifier
from cutaway.security.direction import Ids, residuals

Scorer = Callable[[Sequence[Ids]], np.ndarray]


def detector(
    lm: LanguageModel, layers: Sequence[int], attacks: Sequence[Ids], others: Sequence[Ids]
) -> Scorer:
    """The scorer of prompts, learnt from these."""

    def features(prompts: Sequence[Ids]) -> np.ndarray:
        rows = residuals(lm, prompts)[:, list(layers)]
        rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True).clip(1e-9)
        return rows.reshape(len(prompts), -1).astype(np.float32)

    return classifier.fitted(features, attacks, others)
