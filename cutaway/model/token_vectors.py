"""The vectors of texts' tokens by the PyTorch model: ids in, numpy out; a batch is padded at its ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cutaway.model.decoder import Decoder
from cutaway.model.encoder import Encoder
from cutaway.model.nan import nan_error
from cutaway.shapes import Float, Int


class TokenVectors:
    """An engine of ``runtime/text_vectors.py``, of encoders and of decoders on any device."""

    together = 1 << 30
    pads = True

    def __init__(self, model: Encoder | Decoder) -> None:
        self.model = model

    def encode(
        self, rows: Sequence[Sequence[int]], segments: Sequence[Sequence[int]] | None = None
    ) -> list[np.ndarray]:
        """float32 [t d] of each text's ids: of a decoder, the input of its head."""
        device = self.model.embedding.weight.device
        ids, pos, even = padded(rows)
        parts = None if segments is None else padded(segments)[0].to(device)
        given = ids.to(device), pos.to(device), even, parts
        with torch.inference_mode():
            found = self._hidden(*given).float()
            if found.isnan().any():
                raise nan_error(self.model, lambda: self._hidden(*given))
        return [x[: len(row)] for x, row in zip(found.cpu().numpy(), rows, strict=True)]

    def _hidden(
        self, ids: Tensor, pos: Tensor, even: bool, segments: Tensor | None
    ) -> Float[Tensor, "b t d"]:
        if isinstance(self.model, Encoder):
            return self.model(ids, pos, segments, even)
        return self.model.norm(self.model.routed(ids, pos, in_order=even)[0])


def padded(rows: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"], bool]:
    """Ids and positions with padding at the end, and whether there is none."""
    lengths = np.array([len(row) for row in rows])
    positions = np.arange(lengths.max())
    real = positions < lengths[:, None]
    ids = np.zeros(real.shape, np.int64)
    ids[real] = np.concatenate([np.asarray(row, np.int64) for row in rows])
    return torch.from_numpy(ids), torch.from_numpy(np.where(real, positions, -1)), bool(real.all())
