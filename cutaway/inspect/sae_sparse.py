"""Features as their few nonzero entries, so that training touches only those; PyTorch computes.

A batch's features are entries (row, feature, value), by row. Only the pre-activations need a dense product:
the gradients of W_enc and all of the decoder are sums over entries, a k-th of the f features a token. The
reference is autograd over the dense products (tests/test_sae_training.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

IN_CACHE = 512  # entries at a time whose gathered rows stay in the processor's cache: seven times as fast


class Entries(NamedTuple):
    """Entries of a matrix [rows features] by row: ``starts`` [rows], ``features`` [n], ``values`` [n]."""

    starts: Tensor
    features: Tensor
    values: Tensor

    @property
    def rows(self) -> Tensor:
        """The row of each entry [n]."""
        return _rows(self.starts, len(self.features))


def topk(x: Tensor, weights: Tensor, bias: Tensor, k: int) -> Entries:
    """The k largest pre-activations of each row; those that are not positive become 0."""
    with torch.no_grad():
        pre = torch.addmm(bias, x, weights.T)
        best = pre.topk(k, dim=1, sorted=False).indices
        starts = torch.arange(0, best.numel(), k)
        values = pre.gather(1, best).flatten()
    return _chosen(x, weights, bias, starts, best.flatten(), values)


def batch_topk(x: Tensor, weights: Tensor, bias: Tensor, k: int) -> Entries:
    """The k largest positive pre-activations a row on average, wherever in the batch they are."""
    with torch.no_grad():
        pre = torch.addmm(bias, x, weights.T)
        flat = pre.flatten()
        best = flat.topk(min(k * len(x), flat.numel()), sorted=False).indices.sort().values
        rows, features = best // pre.shape[1], best % pre.shape[1]
        counts = torch.bincount(rows, minlength=len(x))
        starts = counts.cumsum(0) - counts
    return _chosen(x, weights, bias, starts, features, flat[best])


def decoded(entries: Entries, weights: Tensor) -> Tensor:
    """Rows [rows y]: the sum of each row's values times its features' directions [f y]."""
    return _Decoded.apply(entries.values, weights, entries.starts, entries.features)  # pyright: ignore[reportReturnType]


def _chosen(
    x: Tensor, weights: Tensor, bias: Tensor, starts: Tensor, features: Tensor, pre: Tensor
) -> Entries:
    found: Any = _Chosen.apply(x, weights, bias, starts, features, pre)
    return Entries(starts, features, found.relu())


def _rows(starts: Tensor, count: int) -> Tensor:
    ends = torch.cat([starts[1:], torch.tensor([count])])
    return torch.repeat_interleave(torch.arange(len(starts)), ends - starts)


def _product(starts: Tensor, columns: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    """A sparse matrix, by rows, times a dense one."""
    return F.embedding_bag(columns, dense, starts, mode="sum", per_sample_weights=values)


def _transposed(starts: Tensor, features: Tensor, values: Tensor, dense: Tensor, count: int) -> Tensor:
    """The transpose [features rows] of a sparse matrix times a dense one [rows y]."""
    order = features.argsort()
    counts = torch.bincount(features, minlength=count)
    rows = _rows(starts, len(features))
    return _product(counts.cumsum(0) - counts, rows[order], values[order], dense)


class _Chosen(torch.autograd.Function):
    """Pre-activations at some entries, whose gradient reaches the weights of those alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, bias: Tensor, starts: Tensor, features: Tensor, pre: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, starts, features)
        ctx.count = len(bias)
        return pre

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, starts, features = ctx.saved_tensors
        of_weights = _transposed(starts, features, gradient, x, ctx.count)
        of_bias = torch.zeros(ctx.count).to(gradient).index_add_(0, features, gradient)
        return None, of_weights, of_bias, None, None, None


class _Decoded(torch.autograd.Function):
    """Values of features times their directions."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weights: Tensor, starts: Tensor, features: Tensor) -> Tensor:
        ctx.save_for_backward(values, weights, starts, features)
        return _product(starts, features, values, weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, weights, starts, features = ctx.saved_tensors
        rows = _rows(starts, len(features))
        cuts = zip(rows.split(IN_CACHE), features.split(IN_CACHE), strict=True)
        of_values = torch.cat([(gradient[some] * weights[those]).sum(1) for some, those in cuts])
        return of_values, _transposed(starts, features, values, gradient, len(weights)), None, None
