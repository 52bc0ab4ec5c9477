"""Loss under a reference model: text that a model trained on clean text finds improbable is suspicious."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cutaway.evaluate.likelihood import rolling
from cutaway.lm import LanguageModel


def scores(reference: LanguageModel, texts: Sequence[str], beside: LanguageModel | None = None) -> np.ndarray:
    """[n]: mean loss a token under the reference, less that of the trained model ``beside`` it, if given."""
    own = [-rolling(reference, text).mean() for text in texts]
    trained = [0.0] * len(texts) if beside is None else [-rolling(beside, text).mean() for text in texts]
    return np.subtract(own, trained)
