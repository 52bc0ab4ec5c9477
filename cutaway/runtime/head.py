"""The end of a forward pass: rows of the residual stream to logits, by an engine's own product."""

from collections.abc import Callable

import numpy as np

from cutaway.model.config import Decoder
from cutaway.quantization import formats
from cutaway.runtime import arithmetic
from cutaway.runtime.numpy_layers import Layers
from cutaway.weights.named_tensors import Tensors

Product = Callable[[np.ndarray], np.ndarray]  # of the head's matrix with vectors [n d]: float32 [n v]


def unembed(config: Decoder, tensors: Tensors, rows: np.ndarray, product: Product) -> np.ndarray:
    """float32 [n v]: the final norm, the head, its bias and the soft-cap of rows [n d]."""
    normed = Layers(tensors).norm(rows, "norm", config.norm)
    scores = product(normed * np.float32(config.logit_scale))
    scores = scores + formats.unpack(tensors["head.bias"]) if config.head_bias else scores
    return arithmetic.softcapped(scores, config.softcap)
