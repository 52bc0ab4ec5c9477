"""A model with a head for labels: ids in, a number for each label of each text, or of each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cutaway.layers.mlp import ACTIVATIONS
from cutaway.model.decoder import Decoder
from cutaway.model.encoder import Encoder
from cutaway.model.labels import LabelHead
from cutaway.model.nan import nan_error
from cutaway.model.pooling import Pooling, hidden, padded, pool
from cutaway.shapes import Float, Int
from cutaway.store.files import Progress, silent


def of_texts(head: LabelHead, x: Float[Tensor, "b t d"], pos: Int[Tensor, "b t"]) -> Float[Tensor, "b n"]:
    """A number for each label of each text."""
    if head.pooling == "late":
        return pool(of_tokens(head, x), pos, "mean")
    return of_tokens(head, pool(x, pos, cast(Pooling, head.pooling)))


def of_tokens(head: LabelHead, x: Float[Tensor, "... d"]) -> Float[Tensor, "... n"]:
    """A number for each label of each vector."""
    if head.layer is not None:
        weight, bias, activation, norm = head.layer
        x = F.linear(x, _tensor(weight, x), _bias(bias, x))
        x = x.tanh() if activation == "tanh" else ACTIVATIONS[activation](x)
        if norm is not None:
            x = F.layer_norm(x, x.shape[-1:], _tensor(norm.weight, x), _bias(norm.bias, x), norm.eps)
    return F.linear(x, _tensor(head.weight, x), _bias(head.bias, x))


def _tensor(array: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like.device)


def _bias(array: np.ndarray | None, like: Tensor) -> Tensor | None:
    return None if array is None else _tensor(array, like)


def logits(
    model: Encoder | Decoder,
    head: LabelHead,
    rows: Sequence[Sequence[int]],
    segments: Sequence[Sequence[int]] | None = None,
    batch: int = 32,
    progress: Progress = silent,
) -> list[np.ndarray]:
    """For each row of ids float32 [n] for its labels; ``segments`` of tokens are the first by default."""
    return _read(model, lambda x, pos: of_texts(head, x, pos), rows, segments, batch, progress)


def token_logits(
    model: Encoder | Decoder,
    head: LabelHead,
    rows: Sequence[Sequence[int]],
    segments: Sequence[Sequence[int]] | None = None,
    batch: int = 32,
    progress: Progress = silent,
) -> list[np.ndarray]:
    """For each row of ids float32 [t n], for the labels of its tokens."""
    found = _read(model, lambda x, pos: of_tokens(head, x), rows, segments, batch, progress)
    return [one[: len(row)] for one, row in zip(found, rows, strict=True)]


def _read(
    model: Encoder | Decoder,
    apply: Callable[[Tensor, Tensor], Tensor],
    rows: Sequence[Sequence[int]],
    segments: Sequence[Sequence[int]] | None,
    batch: int,
    progress: Progress,
) -> list[np.ndarray]:
    """What ``apply`` makes of the vectors of each row, in batches of rows of like length."""
    out: dict[int, np.ndarray] = {}
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]), reverse=True)
    device = model.embedding.weight.device
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            ids, pos, even = padded([rows[row] for row in chosen])
            parts = None if segments is None else padded([segments[row] for row in chosen])[0].to(device)
            given = ids.to(device), pos.to(device), even, parts
            found = apply(hidden(model, *given).float(), given[1])
            if found.isnan().any():
                raise nan_error(model, lambda given=given: hidden(model, *given))
            out |= zip(chosen, found.cpu().numpy(), strict=True)
            progress("classifying", start + len(chosen), len(order))
    return [out[row] for row in range(len(rows))]
