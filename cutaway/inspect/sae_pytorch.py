"""How a sparse autoencoder (``sae.py``) is trained: Adam on its loss, figures of held-out tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cutaway.errors import UserError
from cutaway.inspect.activations import Activations, norm_limit
from cutaway.inspect.sae import DEAD, SAE, TENSORS, TESTED, Card
from cutaway.store import files

AUX, AUX_FEATURES = 1 / 32, 256
PENALTY, WIDTH = 0.1, 0.5  # of jumprelu: the penalty's weight, the rectangle's width
FIRST_THRESHOLD = 0.5


def trained(
    data: Activations, card: Card, learning_rate: float, progress: files.Progress = files.silent
) -> SAE:
    """The autoencoder that a card describes, of the dataset's rows; UserError for too few tokens."""
    name = card.name
    sinks, limit = data.sinks(name), norm_limit(data.norms(name), data.positions)
    usual = np.flatnonzero(~sinks)
    if len(usual) < 2 * TESTED:
        raise UserError(
            f"the dataset has {len(usual)} tokens beside {int(sinks.sum())} attention sinks, and at least "
            f"{2 * TESTED} are needed"
        )
    card = replace(card, tokens=len(data), sinks=int(sinks.sum()), norm_limit=limit)
    held_out = usual[::TESTED]
    also = np.sort(np.concatenate([held_out, np.flatnonzero(sinks)[::TESTED]]))
    rows = np.setdiff1d(np.arange(len(data)) if card.keep_sinks else usual, also)
    draw = np.random.default_rng(card.seed)
    first = _flat(data.rows(name, draw.choice(rows, min(len(rows), 8192), replace=False)))
    mean = first.mean(0)
    scale = (first - mean).square().mean().sqrt()
    of = _begun(first.shape[1], card)
    weights = [of[key].requires_grad_() for key in TENSORS if key != "threshold" or card.kind == "jumprelu"]
    optimizer = torch.optim.Adam(weights, lr=learning_rate)
    silent, steps = torch.zeros(card.features), card.steps
    for step in range(steps):
        x = (_flat(data.rows(name, draw.choice(rows, card.batch))) - mean) / scale
        rate = min(1.0, (step + 1) / max(1, steps // 20), (steps - step) / max(1, steps // 5))
        optimizer.param_groups[0]["lr"] = learning_rate * rate
        loss, z = _loss(x, of, card, silent)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            of["decoder"].copy_(F.normalize(of["decoder"], dim=1))
            silent = torch.where((z > 0).any(0), 0, silent + 1)
        progress("steps", step + 1, steps)
    made = _in_own_units({key: value.detach() for key, value in of.items()}, mean, scale)
    sae = SAE(card, {key: value.numpy() for key, value in made.items()})
    return SAE(_measured(sae, data, held_out, also), sae.tensors)


def _flat(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(rows).flatten(1)


def _begun(width: int, card: Card) -> dict[str, Tensor]:
    """Random directions; the encoder begins as the decoder's transpose."""
    generator = torch.Generator().manual_seed(card.seed)
    decoder = F.normalize(torch.randn(card.features, width, generator=generator), dim=1)
    start = FIRST_THRESHOLD if card.kind == "jumprelu" else 0.0
    zeros = torch.zeros(card.features)
    return {
        "encoder": decoder.clone(),
        "bias": zeros.clone(),
        "decoder": decoder,
        "center": torch.zeros(width),
        "threshold": zeros + start,
    }


def _loss(x: Tensor, of: dict[str, Tensor], card: Card, silent: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of rows [b d], and the features' activations [b f]."""
    pre = (x - of["center"]) @ of["encoder"].T + of["bias"]
    z = _sparse(pre, of["threshold"], card)
    error = x - z @ of["decoder"] - of["center"]
    variance = (x - x.mean(0)).square().sum()
    loss = error.square().sum() / variance
    if card.kind == "jumprelu":
        l0 = _Step.apply(pre, of["threshold"]).sum(1).mean()  # pyright: ignore[reportAttributeAccessIssue]
        return loss + PENALTY * (l0 / card.k - 1).square(), z
    dead = silent > DEAD
    if not bool(dead.any()):
        return loss, z
    best = pre.masked_fill(~dead, -torch.inf).topk(min(AUX_FEATURES, int(dead.sum())), dim=1)
    aux = torch.zeros_like(pre).scatter(1, best.indices, best.values.relu()) @ of["decoder"]
    return loss + AUX * (error.detach() - aux).square().sum() / variance, z


def _sparse(pre: Tensor, threshold: Tensor, card: Card) -> Tensor:
    if card.kind == "jumprelu":
        return _JumpReLU.apply(pre, threshold)  # pyright: ignore[reportReturnType]
    best = pre.topk(card.k, dim=1)
    return torch.zeros_like(pre).scatter(1, best.indices, best.values.relu())


def _rectangle(pre: Tensor, threshold: Tensor) -> Tensor:
    """The derivative that stands for a step's: 1 / width within half a width of the threshold."""
    return ((pre - threshold).abs() < WIDTH / 2).to(pre) / WIDTH


class _Step(torch.autograd.Function):
    """1 where u > theta."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        return (pre > threshold).to(pre)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, -(gradient * _rectangle(*ctx.saved_tensors)).sum(0)


class _JumpReLU(torch.autograd.Function):
    """u where u > theta, else 0."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pre, threshold = ctx.saved_tensors
        of_threshold = -(gradient * threshold * _rectangle(pre, threshold)).sum(0)
        return gradient * (pre > threshold), of_threshold


def _in_own_units(of: dict[str, Tensor], mean: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """The same function of x as it was of (x - mean) / scale."""
    moved = {"encoder": of["encoder"] / scale, "decoder": of["decoder"] * scale}
    return of | moved | {"center": mean + scale * of["center"]}


def _measured(sae: SAE, data: Activations, held_out: np.ndarray, with_sinks: np.ndarray) -> Card:
    """The card with its figures on held-out rows."""

    def unexplained(rows: np.ndarray) -> tuple[float, np.ndarray]:
        x = data.rows(sae.name, rows[: 1 << 15]).reshape(min(len(rows), 1 << 15), -1)
        z = sae.encode(x)
        left, whole = x - sae.decode(z), x - x.mean(0)
        return float(
            np.square(left, dtype=np.float64).sum() / np.square(whole, dtype=np.float64).sum()
        ), z > 0

    (left, active), (of_both, _) = unexplained(held_out), unexplained(with_sinks)
    l0, dead = float(active.sum(1).mean()), int((~active.any(0)).sum())
    return replace(sae.card, unexplained=left, unexplained_with_sinks=of_both, l0=l0, dead=dead)
