"""A filter by perplexity in windows (2309.00614): a text is suspicious where some passage of it is unlikely.

    score = max over windows of WINDOW tokens of the mean of -log p(token | those before it)

The whole text's perplexity hides a short suffix behind a long ordinary text; its worst window does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cutaway.evaluate.likelihood import rolling
from cutaway.lm import LanguageModel

WINDOW = 8


def scores(lm: LanguageModel, texts: Sequence[str]) -> np.ndarray:
    """float64 [n] in nats, by a model that need not be the one attacked."""
    return np.array([worst(-rolling(lm, text)) for text in texts])


def worst(surprises: np.ndarray) -> float:
    """The greatest mean of a window; a text shorter than a window is one."""
    size = min(WINDOW, len(surprises))
    sums = np.concatenate([[0.0], np.cumsum(surprises)])
    return float((sums[size:] - sums[:-size]).max() / size)
