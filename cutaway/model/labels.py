"""The head of a classifier as data: what is between tokens' vectors and a number for each label. No torch."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

HeadPooling = Literal["cls", "mean", "last", "late"]


class HeadNorm(NamedTuple):
    """A layer norm's weight [d], its bias, and its epsilon."""

    weight: np.ndarray
    bias: np.ndarray | None
    eps: float


class HeadLayer(NamedTuple):
    """norm(activation(W x + b)); the activation is ``tanh`` or one of an MLP's."""

    weight: np.ndarray
    bias: np.ndarray | None
    activation: str
    norm: HeadNorm | None = None


class LabelHead(NamedTuple):
    """logits = W f(x) + b, f being ``layer``, if there is one; x is pooled of the tokens' vectors.

    ``late`` pools the numbers of all tokens instead (EuroBERT, 2503.05500).
    """

    layer: HeadLayer | None
    weight: np.ndarray
    bias: np.ndarray | None
    pooling: HeadPooling

    @property
    def labels(self) -> int:
        """How many labels it has."""
        return self.weight.shape[0]
