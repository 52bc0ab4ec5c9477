"""Each weight column's importance: the mean square of its inputs on a text.

For y = W x, rounding W to W + E adds E x to y, whose mean square over many x is, as far as different x_j are
independent, sum over columns j of E_j^2 mean(x_j^2). So that is how errors are weighed when scales are chosen
(quantization/search.py); the idea is llama.cpp's importance matrix. The definition reads the text in
windows, and the inputs of every product with a weight are collected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from cutaway.errors import UserError
from cutaway.model.decoder import Decoder
from cutaway.store.files import Progress, silent

WINDOW = 512  # tokens read together; the next window begins anew


def importance(model: Decoder, ids: Sequence[int], progress: Progress = silent) -> dict[str, np.ndarray]:
    """By the name of each weight that multiplies: float32 [columns], the mean square of its inputs.

    ``progress`` counts tokens. Raises UserError for a text without a token."""
    found = sums(model, ids, progress)
    return {name: (total / rows).astype(np.float32) for name, (total, rows) in found.items()}


def sums(
    model: Decoder, ids: Sequence[int], progress: Progress = silent
) -> dict[str, tuple[np.ndarray, int]]:
    """By the name of each weight that multiplies: float64 [columns], the sum of its inputs' squares, and over
    how many of them; ``progress`` and errors as in ``importance``."""
    return _sums(model, ids, lambda rows: rows.square().sum(dim=0), "", progress)


def moments(model: Decoder, ids: Sequence[int], progress: Progress = silent) -> dict[str, np.ndarray]:
    """By the name of each layer's query matrix: float64 [width width], the mean of x x' of its inputs x.

    ``progress`` and errors as in ``importance``."""
    found = _sums(model, ids, lambda rows: rows.T @ rows, "attention.query.weight", progress)
    return {name: total / rows for name, (total, rows) in found.items()}


def _sums(
    model: Decoder, ids: Sequence[int], of: Callable[[Tensor], Tensor], end: str, progress: Progress
) -> dict[str, tuple[np.ndarray, int]]:
    """What ``of`` sums over the inputs of each weight whose name has this end, and how many they are."""
    if not ids:
        raise UserError("The calibration text has no token: give a longer one")
    inputs = _Inputs(model, of, end)
    size = min(WINDOW, model.config.context)
    device = next(iter(model.parameters())).device
    with torch.inference_mode(), inputs:
        for start in range(0, len(ids), size):
            window = torch.tensor([list(ids[start : start + size])], device=device)
            model(window, torch.arange(window.shape[1], device=device)[None])
            progress("calibrating", min(start + size, len(ids)), len(ids))
    return {name: (total.cpu().numpy(), inputs.rows[name]) for name, total in inputs.sums.items()}


class _Inputs(TorchFunctionMode):
    """Sums what ``of`` makes of the rows that are multiplied by each of a model's weights."""

    def __init__(self, model: nn.Module, of: Callable[[Tensor], Tensor], end: str) -> None:
        super().__init__()
        self.of = of
        self.names = {id(weight): name for name, weight in model.named_parameters() if name.endswith(end)}
        self.sums: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = self.names.get(id(args[1])) if func is functional.linear and len(args) > 1 else None
        if name is not None and args[0].numel():  # an expert may have no token
            rows = args[0].detach().reshape(-1, args[0].shape[-1]).double()
            self.sums[name] = self.sums.get(name, 0) + self.of(rows)
            self.rows[name] = self.rows.get(name, 0) + len(rows)
        return func(*args, **(kwargs or {}))
