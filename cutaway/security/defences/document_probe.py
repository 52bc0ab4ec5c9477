"""A linear probe: logistic regression on activations, learnt from documents that are known to be poisoned.

Its control is the same probe on the activations of a model that never saw them: what that one finds is in the
documents' words and not in the backdoor.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

STEPS, RATE, DECAY = 300, 0.5, 1e-3


def fitted(poisoned: np.ndarray, clean: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A scorer of activations [n d], from those of both kinds; both weigh the same."""
    x = np.concatenate([poisoned, clean]).astype(np.float64)
    mean, spread = x.mean(0), x.std(0) + 1e-6
    y = np.r_[np.ones(len(poisoned)), np.zeros(len(clean))]
    weight = np.where(y == 1, 0.5 / len(poisoned), 0.5 / len(clean))
    x, w, b = (x - mean) / spread, np.zeros(x.shape[1]), 0.0
    for _ in range(STEPS):
        off = weight * (1 / (1 + np.exp(-np.clip(x @ w + b, -30, 30))) - y)
        w -= RATE * (x.T @ off + DECAY * w)
        b -= RATE * off.sum()
    return lambda hidden: (hidden - mean) / spread @ w + b
