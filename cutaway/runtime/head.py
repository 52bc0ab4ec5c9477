"""The end of a forward pass: rows of the residual stream to logits, by an engine's own product."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cutaway.layers.config import Norm
from cutaway.model.config import Decoder
from cutaway.quantization import formats
from cutaway.runtime import arithmetic
from cutaway.weights.rules import Tensors

Product = Callable[[np.ndarray], np.ndarray]  # of the head's matrix with vectors [n d]: float32 [n v]


def unembed(config: Decoder, tensors: Tensors, rows: np.ndarray, product: Product) -> np.ndarray:
    """float32 [n v]: the final norm, the head, its bias and the soft-cap of rows [n d]."""
    scores = product(final_norm(config.norm, tensors, rows) * np.float32(config.logit_scale))
    scores = scores + formats.unpack(tensors["head.bias"]) if config.head_bias else scores
    return arithmetic.softcapped(scores, config.softcap)


def final_norm(of: Norm, tensors: Tensors, rows: np.ndarray) -> np.ndarray:
    """Rows [n d] normed as the head reads them."""
    weight = formats.unpack(tensors["norm.weight"]) if of.weight else np.float32(1)
    if of.kind == "rms":
        return arithmetic.rms_norm(rows, weight, of.eps)
    bias = formats.unpack(tensors["norm.bias"]) if of.weight and of.bias else None
    return arithmetic.layer_norm(rows, weight, bias, of.eps)
