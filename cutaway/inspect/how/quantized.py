"""One text with the weights in another type: the next token, and how far all predictions move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.arrays import largest, log_softmax
from cutaway.weights import quantize
from cutaway.weights.retype import stored_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence


TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
TOKENS = 256
PARAMETERS = 400_000_000
TOP = 5


def quantized(lm: Any, ids: Sequence[int], kind: str) -> dict[str, Any]:
    """The text by the model in another type: bytes, KL(model || quantized) in nats a position, next tokens.

    The weights that the model has are what is quantized and compared with: of a packed file its own types.
    Raises UserError for another type, a text of more than 256 tokens, and a model of more than 400 million
    parameters, for which `cutaway quantize` measures.
    """
    if kind not in TYPES:
        raise UserError(f"There is no type {kind!r} here: give one of {', '.join(TYPES)}")
    if not 1 <= len(ids) <= TOKENS:
        raise UserError(f"The text has {len(ids):,} tokens: give 1 to {TOKENS}")
    tensors = lm.checkpoint.tensors
    parameters = sum(int(np.prod(tensors.later(name).shape)) for name in tensors)
    if parameters > PARAMETERS:
        raise UserError(
            f"The model has {parameters:,} parameters, and at most {PARAMETERS:,} are quantized here: "
            "use `cutaway quantize`"
        )
    made = quantize.quantized(lm.checkpoint, kind).checkpoint
    other = lm.__class__(made)  # which this module must not import
    one, two = (log_softmax(each.logits(ids).astype(np.float64)) for each in (lm, other))
    kl = (np.exp(one) * (one - two)).sum(-1)
    best = largest(one[-1], TOP).tolist()
    return {
        "type": kind,
        "bytes": stored_bytes(made.tensors),
        "bytes_before": stored_bytes(tensors),
        "kl": kl.tolist(),
        "next": [_next(lm, id, one, two) for id in dict.fromkeys([*best, int(two[-1].argmax())])],
    }


def _next(lm: Any, id: int, one: np.ndarray, two: np.ndarray) -> dict[str, Any]:
    text = lm.tokenizer.token_bytes(id).decode(errors="backslashreplace")
    return {"id": id, "text": text, "before": float(np.exp(one[-1, id])), "after": float(np.exp(two[-1, id]))}
