"""A text as a model takes it: ids and positions in a batch of one, where the model is."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cutaway.model.decoder import Decoder
from cutaway.shapes import Int


def device(model: Decoder) -> torch.device:
    """Where the model is."""
    return next(model.parameters()).device


def row(model: Decoder, ids: Sequence[int]) -> tuple[Int[Tensor, "1 t"], Int[Tensor, "1 t"]]:
    """The ids, and their positions 0, 1, 2, ..."""
    here = device(model)
    return torch.tensor([list(ids)], dtype=torch.long, device=here), torch.arange(len(ids), device=here)[None]
