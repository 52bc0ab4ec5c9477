"""The runtime's encoders (native/runtime/encoder.cpp): one call reads texts of any lengths, unpadded."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.native import library
from cutaway.native.library import check, function
from cutaway.native.packed_product import Matrix
from cutaway.native.structures import MATRICES, Activation, Norm, Rotation

_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
NORMS = ("attention_norm", "attention_post_norm", "attention_sum_norm")
NORMS += ("mlp_norm", "mlp_post_norm", "mlp_sum_norm", "query_norm", "key_norm")


class Layer(ctypes.Structure):
    """native/runtime/encoder.hpp's EncoderLayer."""

    _fields_ = [
        *((name, Matrix) for name in MATRICES),
        *((name, Norm) for name in NORMS),
        ("activation", Activation),
        ("relative", _POINTER),
        *((name, _INT) for name in ("heads", "groups", "key_size", "value_size")),
        *((name, _INT) for name in ("reach", "rotation", "norm_over")),
        *((name, _FLOAT) for name in ("scale", "softcap")),
        ("spare", _INT),
    ]


class Encoder(ctypes.Structure):
    """native/runtime/encoder.hpp's Encoder."""

    _fields_ = [
        ("layers", ctypes.POINTER(Layer)),
        ("rotations", ctypes.POINTER(Rotation)),
        *((name, _POINTER) for name in ("embedding", "positions", "segments")),
        *((name, Norm) for name in ("embedding_norm", "norm")),
        ("projection", Matrix),
        ("embedding_row", _LONG),
        *((name, _INT) for name in ("embedding_type", "layer_count", "rotation_count")),
        *((name, _INT) for name in ("embedding_width", "width", "context", "mask")),
        ("embedding_scale", _FLOAT),
    ]


class Texts(ctypes.Structure):
    """native/runtime/encoder.hpp's Texts."""

    _fields_ = [
        *((name, _POINTER) for name in ("ids", "segments", "starts", "kept", "out")),
        *((name, _INT) for name in ("count", "spare")),
    ]


def encode(
    model: Encoder,
    vocab: int,
    ids: np.ndarray,
    starts: np.ndarray,
    segments: np.ndarray | None = None,
    kept: np.ndarray | None = None,
    threads: int | None = None,
    segment_count: int = 0,
) -> np.ndarray:
    """float32 [tokens width]: the vectors of the tokens of texts, one text after another.

    ``ids`` int32 [tokens], those of text t from ``starts[t]`` to ``starts[t + 1]``; ``segments`` int32 say
    which part of its text each is in; ``kept`` float32 [texts] multiplies embeddings. Raises UserError for
    what does not fit together, and for a text without a token or past the context.
    """
    call = function("cutaway_encode", *[_POINTER] * 2, _INT, result=_INT)
    _mirrored()
    for name, array, dtype in (("ids", ids, np.int32), ("starts", starts, np.int32)):
        check(name, array, dtype)
    counts = np.diff(starts)
    if len(starts) < 2 or starts[0] != 0 or starts[-1] != len(ids) or counts.min() < 1:
        raise UserError(f"The starts {starts.tolist()} do not divide {len(ids)} tokens into texts.")
    if counts.max() > model.context:
        raise UserError(f"A text has {counts.max()} tokens, and the model reads at most {model.context}.")
    if ids.min() < 0 or ids.max() >= vocab:
        raise UserError(f"An id is outside the model's 0 to {vocab - 1}.")
    if segments is not None:
        check("segments", segments, np.int32)
        if len(segments) != len(ids) or segments.min() < 0 or segments.max() >= segment_count:
            raise UserError(f"The segments are not numbers below {segment_count}, one for each token.")
    if kept is not None:
        check("kept", kept, np.float32)
        if len(kept) != len(counts):
            raise UserError(f"{len(kept)} factors are not one for each of {len(counts)} texts.")
    out = np.empty((len(ids), model.width), np.float32)
    texts = Texts(
        ids.ctypes.data,
        None if segments is None else segments.ctypes.data,
        starts.ctypes.data,
        None if kept is None else kept.ctypes.data,
        out.ctypes.data,
        len(counts),
        0,
    )
    threads = library.threads() if threads is None else threads
    if call(ctypes.addressof(model), ctypes.addressof(texts), threads):
        raise OperationalError(f"There is no memory to read {len(ids)} tokens at once; read fewer.")
    return out


@cache
def _mirrored() -> None:
    """Check that the structures here are laid out as the compiler's."""
    ours = [ctypes.sizeof(each) for each in (Layer, Encoder, Texts)]
    theirs = (ctypes.c_int64 * len(ours))()
    function("cutaway_encoder_sizes", _POINTER)(theirs)
    if list(theirs) != ours:
        raise OperationalError(
            f"The core's structures have {list(theirs)} bytes, ctypes' {ours}; install again"
        )
