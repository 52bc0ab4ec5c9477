"""Sums over the inputs of every product with a weight of a PyTorch model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from cutaway.model.decoder import Decoder
from cutaway.store.files import Progress

Summed = Callable[[np.ndarray], np.ndarray]  # of rows float64 [n columns]


def sums_of(
    model: Decoder, ids: Sequence[int], window: int, of: Summed, end: str, progress: Progress
) -> dict[str, tuple[np.ndarray, int]]:
    """What ``of`` sums over the inputs of each weight whose name has this end, and how many they are.

    ``window``: how many tokens are read together.
    """
    inputs = _Inputs(model, of, end)
    size = min(window, model.config.context)
    device = next(iter(model.parameters())).device
    with torch.inference_mode(), inputs:
        for start in range(0, len(ids), size):
            text = torch.tensor([list(ids[start : start + size])], device=device)
            model(text, torch.arange(text.shape[1], device=device)[None])
            progress("calibrating", min(start + size, len(ids)), len(ids))
    return {name: (total, inputs.rows[name]) for name, total in inputs.sums.items()}


class _Inputs(TorchFunctionMode):
    """Sums what ``of`` makes of the rows that are multiplied by each of a model's weights."""

    def __init__(self, model: nn.Module, of: Summed, end: str) -> None:
        super().__init__()
        self.of = of
        self.names = {id(weight): name for name, weight in model.named_parameters() if name.endswith(end)}
        self.sums: dict[str, np.ndarray] = {}
        self.rows: dict[str, int] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = self.names.get(id(args[1])) if func is functional.linear and len(args) > 1 else None
        if name is not None and args[0].numel():  # an expert may have no token
            rows = args[0].detach().reshape(-1, args[0].shape[-1]).double().cpu().numpy()
            self.sums[name] = self.sums.get(name, 0) + self.of(rows)
            self.rows[name] = self.rows.get(name, 0) + len(rows)
        return func(*args, **(kwargs or {}))
