"""One vector for a whole text, from the vectors of its tokens (Sentence-BERT, 1908.10084).

    mean   the average of the tokens        cls   the first token's        last   the last token's

Texts of like length share a batch, so that little of it is padding; padding changes no vector. Ids in,
vectors out: no tokenizer is involved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cutaway.model.decoder import Decoder
from cutaway.model.encoder import Encoder
from cutaway.model.nan import nan_error
from cutaway.shapes import Float, Int
from cutaway.store.files import Progress, silent

Pooling = Literal["mean", "cls", "last"]


def vectors(
    model: Encoder | Decoder,
    rows: Sequence[Sequence[int]],
    pooling: Pooling,
    normalise: bool = True,
    batch: int = 32,
    progress: Progress = silent,
) -> np.ndarray:
    """float32 [n d]: a vector for each row of ids, of norm one if ``normalise``.

    ``batch`` rows are read at once; ``progress`` counts them.
    """
    out = np.empty((len(rows), model.config.width), np.float32)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]), reverse=True)
    device = model.embedding.weight.device
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            ids, pos, even = padded([rows[row] for row in chosen])
            x = hidden(model, ids.to(device), pos := pos.to(device), even)
            pooled = pool(x, pos, pooling).float()
            out[chosen] = (F.normalize(pooled, dim=-1) if normalise else pooled).cpu().numpy()
            if np.isnan(out[chosen]).any():
                raise nan_error(model, lambda ids=ids, pos=pos: hidden(model, ids.to(device), pos, False))
            progress("embedding", start + len(chosen), len(order))
    return out


def pool(x: Float[Tensor, "b t d"], pos: Int[Tensor, "b t"], pooling: Pooling) -> Float[Tensor, "b d"]:
    """A row's tokens as one vector, without the padding at its end (positions of -1)."""
    if pooling == "cls":
        return x[:, 0]
    real = pos >= 0
    if pooling == "last":
        return x[torch.arange(len(x), device=x.device), real.sum(1) - 1]
    return torch.where(real[..., None], x, 0).sum(1) / real.sum(1, keepdim=True)


def hidden(
    model: Encoder | Decoder, ids: Tensor, pos: Tensor, even: bool, segments: Tensor | None = None
) -> Float[Tensor, "b t d"]:
    """The model's token vectors: of a decoder, the input of its head."""
    if isinstance(model, Encoder):
        return model(ids, pos, segments, even)
    return model.norm(model.routed(ids, pos, in_order=even)[0])


def padded(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"], bool]:
    """Ids and positions with padding at the end, and whether there is none."""
    lengths = np.array([len(row) for row in rows])
    positions = np.arange(lengths.max())
    real = positions < lengths[:, None]
    ids = np.zeros(real.shape, np.int64)
    ids[real] = np.concatenate([np.asarray(row, np.int64) for row in rows])
    return torch.from_numpy(ids), torch.from_numpy(np.where(real, positions, -1)), bool(real.all())
