"""Train sparse autoencoders (``sae.py``) in PyTorch: their losses, Adam, checkpoints to resume from.

The loss is the fraction of variance unexplained, the mean over what is written. Features of TopK and
BatchTopK that did not fire for ``DEAD`` steps explain what the others leave (AuxK, 2406.04093). JumpReLU adds
the penalty (L0 / k - 1)^2, whose gradient passes the step through a rectangle around each threshold. The
dictionaries of a cross-layer set are trained together: what a layer writes is the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cutaway.errors import OperationalError, UserError
from cutaway.inspect import sae_sparse
from cutaway.inspect.sae import DEAD, Card
from cutaway.quantization import formats
from cutaway.store import files
from cutaway.weights import safetensors

AUX, AUX_FEATURES = 1 / 32, 256
PENALTY, WIDTH = 0.1, 0.5  # of jumprelu: the penalty's weight, the rectangle's width
FIRST_THRESHOLD = 0.5
SMALL = 0.1  # the norm of a first encoder row that is no decoder's
KEPT = 0.99  # of batch_topk's threshold, an exponential mean over steps
EVERY = 200  # steps between two checkpoints
Batches = Callable[[int], tuple[np.ndarray, np.ndarray]]  # of a step: what is read [b x], written [b y]


@dataclass
class Part:
    """One dictionary: its card, its columns of what is read and written, and its tensors."""

    card: Card
    reads: slice
    writes: slice
    of: dict[str, Tensor]

    def weights(self) -> list[Tensor]:
        """The weights that Adam trains."""
        fixed = () if self.card.activation == "jumprelu" else ("threshold",)
        return [tensor for name, tensor in self.of.items() if name not in (*fixed, "silent")]


def begun(card: Card, reads: slice, writes: slice, number: int) -> Part:
    """A part with its first weights: random directions, the same both ways where it reads what it writes.

    Otherwise the two have nothing to do with each other yet, and features begin small: what they write at
    first is noise beside the mean, which training would have to take back.
    """
    generator = torch.Generator().manual_seed(card.seed + number)
    x, y, f = reads.stop - reads.start, writes.stop - writes.start, card.features
    decoder = F.normalize(torch.randn(f, y, generator=generator), dim=1)
    same = card.reads == card.writes
    encoder = decoder.clone() if same else F.normalize(torch.randn(f, x, generator=generator), dim=1)
    if not same and card.activation != "jumprelu":  # its first threshold has their size
        encoder *= SMALL
    start = FIRST_THRESHOLD if card.activation == "jumprelu" else 0.0
    of = {"W_enc": encoder, "b_enc": torch.zeros(f), "W_dec": decoder, "b_dec": torch.zeros(y)}
    of |= {"W_skip": torch.zeros(y, x)} if card.skip else {}
    of |= {"threshold": torch.full((f,), start), "silent": torch.zeros(f)}
    return Part(card, reads, writes, of)


def optimize(
    parts: list[Part],
    blocks: list[slice],
    batches: Batches,
    learning_rate: float,
    checkpoint: Path | None,
    progress: files.Progress,
) -> None:
    """Trains the parts in place; ``blocks``: the columns of each activation that is written."""
    weights = [tensor.requires_grad_() for part in parts for tensor in part.weights()]
    optimizer = torch.optim.Adam(weights, lr=learning_rate, fused=True)
    steps = parts[0].card.steps
    begin = _resumed(checkpoint, parts, optimizer)
    for step in range(begin, steps):
        x, y = map(torch.from_numpy, batches(step))
        rate = min(1.0, (step + 1) / max(1, steps // 20), (steps - step) / max(1, steps // 5))
        optimizer.param_groups[0]["lr"] = learning_rate * rate
        loss = loss_of(parts, blocks, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        kept = (step + 1) % EVERY == 0 or step + 1 == steps
        if not (loss.isfinite() and (not kept or all(one.isfinite().all() for one in weights))):
            raise OperationalError(
                f"training diverged at step {step + 1:,}: the loss or a weight is no finite number; give a "
                f"lower learning rate than {learning_rate:g}, or a larger batch than {parts[0].card.batch:,}"
            )
        with torch.no_grad():
            for part in parts:
                part.of["W_dec"].copy_(F.normalize(part.of["W_dec"], dim=1))
        progress("steps", step + 1, steps)
        if checkpoint is not None and (step + 1) % EVERY == 0 and step + 1 < steps:
            _keep(checkpoint, parts, optimizer, step + 1)
    for tensor in weights:
        tensor.requires_grad_(False)


def loss_of(parts: list[Part], blocks: list[slice], x: Tensor, y: Tensor) -> Tensor:
    """The loss of rows [b x] and [b y]; it also counts for how many steps each feature did not fire."""
    made: list[tuple[Tensor, Tensor]] = []
    penalty: Any = 0.0
    for part in parts:
        if part.card.activation == "jumprelu":
            written, fired, more = _jumprelu(part, x[:, part.reads])
            penalty = penalty + more
        else:
            written, fired = _largest(part, x[:, part.reads])
        if part.card.skip:
            written = written + x[:, part.reads] @ part.of["W_skip"].T
        made.append((written + part.of["b_dec"], fired))
    total = torch.zeros_like(y)
    for part, (written, _) in zip(parts, made, strict=True):
        total = total + F.pad(written, (part.writes.start, y.shape[1] - part.writes.stop))
    error, spread = y - total, (y - y.mean(0)).square()
    parts_of = [error[:, block].square().sum() / spread[:, block].sum() for block in blocks]
    loss = torch.stack(parts_of).mean() + penalty
    for part, (_, fired) in zip(parts, made, strict=True):
        if part.card.activation != "jumprelu":
            loss = loss + _aux(part, x[:, part.reads], error[:, part.writes].detach()) / spread.sum()
        part.of["silent"] = torch.where(fired, 0, part.of["silent"] + 1)
    return loss


def _largest(part: Part, x: Tensor) -> tuple[Tensor, Tensor]:
    """What TopK or BatchTopK writes of rows, and which features fired [f]."""
    of, k = part.of, part.card.k
    choose = sae_sparse.topk if part.card.activation == "topk" else sae_sparse.batch_topk
    entries = choose(x, of["W_enc"], of["b_enc"], k)
    fired = torch.zeros(part.card.features, dtype=torch.bool)
    positive = entries.values.detach() > 0
    fired[entries.features[positive]] = True
    if part.card.activation == "batch_topk" and bool(positive.any()):
        least = entries.values.detach()[positive].min()
        before = of["threshold"]
        of["threshold"] = torch.where(before == 0, least, KEPT * before + (1 - KEPT) * least)
    return sae_sparse.decoded(entries, of["W_dec"]), fired


def _aux(part: Part, x: Tensor, error: Tensor) -> Tensor | float:
    """The auxiliary loss: how badly dead features explain the error of the others."""
    dead = (part.of["silent"] > DEAD).nonzero()[:, 0]
    if not len(dead):
        return 0.0
    pre = x @ part.of["W_enc"][dead].T + part.of["b_enc"][dead]
    best = pre.topk(min(AUX_FEATURES, len(dead)), dim=1)
    aux = torch.zeros_like(pre).scatter(1, best.indices, best.values.relu()) @ part.of["W_dec"][dead]
    return AUX * (error - aux).square().sum()


def _jumprelu(part: Part, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What JumpReLU writes of rows, which features fired, and the penalty."""
    of = part.of
    pre = x @ of["W_enc"].T + of["b_enc"]
    z: Any = _JumpReLU.apply(pre, of["threshold"])
    l0 = _Step.apply(pre, of["threshold"]).sum(1).mean()  # pyright: ignore[reportAttributeAccessIssue]
    return z @ of["W_dec"], (z > 0).any(0), PENALTY * (l0 / part.card.k - 1).square()


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


# ---- checkpoints -------------------------------------------------------------------------------------------


def _state(parts: list[Part], optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """All that a step depends on, by name."""
    found = {
        f"{n}.{name}": tensor.detach() for n, part in enumerate(parts) for name, tensor in part.of.items()
    }
    for n, state in enumerate(optimizer.state.values()):
        found |= {f"adam.{n}.{name}": state[name] for name in ("exp_avg", "exp_avg_sq")}
    return found


def _keep(path: Path, parts: list[Part], optimizer: torch.optim.Adam, step: int) -> None:
    tensors = {
        name: ("F32", tuple(tensor.shape), tensor.numpy())
        for name, tensor in _state(parts, optimizer).items()
    }
    safetensors.write_safetensors(
        path, tensors, {"step": str(step), "cards": repr([part.card for part in parts])}
    )


def _resumed(path: Path | None, parts: list[Part], optimizer: torch.optim.Adam) -> int:
    """The step to go on with; the parts and the optimizer are as they were there."""
    if path is None or not path.is_file():
        return 0
    facts = safetensors.metadata(path)
    step = int(facts["step"]) if facts.get("step", "").isdecimal() else -1
    if facts.get("cards") != repr([part.card for part in parts]) or not 0 <= step < parts[0].card.steps:
        raise UserError(
            f"{path} is of another training: give the same options to go on, or --force to begin anew"
        )
    for part in parts:
        for tensor in part.weights():
            state = {"step": torch.tensor(float(step))}
            optimizer.state[tensor] = state | {n: torch.zeros_like(tensor) for n in ("exp_avg", "exp_avg_sq")}
    wanted = _state(parts, optimizer)
    found = safetensors.read_shaped(path, {name: tuple(tensor.shape) for name, tensor in wanted.items()})
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(torch.from_numpy(formats.unpack(found[name]).copy()))
    return step
