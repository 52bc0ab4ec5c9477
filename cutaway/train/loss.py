"""Cross-entropy and log-probabilities without the matrix of all logits, and the load-balancing loss.

    loss = w (-log softmax(logits)[target] + z (log sum exp logits)^2)

The logits are the largest tensor of a small model's step, so they are computed a chunk of rows at a time. The
gradient of ``chunked`` is computed with its loss (2410.10989), and so is that of ``log_probs`` beside a
frozen head: what is made of them later only scales it. ``plain`` is the reference. Where there is a native
core the gradient takes the place of the logits (native/train/loss.cpp).

Load balancing keeps a router from sending all tokens to a few experts (2101.03961, equations 4 to 6):

    E sum over experts e of f_e P_e      f_e: fraction of the choices that fell on e, P_e: its mean score

It is 1 where all experts are chosen equally. f has no gradient; P's lowers the scores of the most chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cutaway.layers.moe import Routing
from cutaway.layers.norm import widened
from cutaway.layers.product import product_type, products
from cutaway.layers.workers import KERNELS, TYPES, workers
from cutaway.native import train as native_loss
from cutaway.shapes import Bool, Float, Int


def plain(logits: Float[Tensor, "n v"], targets: Int[Tensor, "n"], z: float = 0.0) -> Float[Tensor, ""]:
    """The sum of the losses of all rows, by torch's own cross-entropy."""
    wide = widened(logits)
    loss = F.cross_entropy(wide, targets, reduction="sum")
    return loss + z * wide.logsumexp(-1).square().sum() if z else loss


def chunked(
    x: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    targets: Int[Tensor, "n"],
    chunk: int,
    z: float = 0.0,
    softcap: float | None = None,
    weights: Float[Tensor, "n"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The loss of logits = x weight^T, and its cross-entropy alone, which has no gradient.

    ``softcap`` bounds the logits; each row's loss is multiplied by its ``weights`` (None: 1). A row of
    weight 0 costs no logits.
    """
    if weights is not None:
        kept = weights.nonzero()[:, 0]
        x, targets, weights = x[kept], targets[kept], weights[kept]
    return _Chunked.apply(x, weight, targets, chunk, z, softcap, weights)  # type: ignore[return-value]


def log_probs(
    hidden: Float[Tensor, "n d"],
    weight: Float[Tensor, "v d"],
    targets: Int[Tensor, "n"],
    chunk_size: int,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "n"]:
    """The log-probability of each target under softmax(hidden weight^T / temperature)."""
    return _LogProbs.apply(hidden, weight, targets, chunk_size, softcap, temperature)  # type: ignore[return-value]


def load_balancing(routing: Routing, real: Bool[Tensor, "b t"]) -> Float[Tensor, ""]:
    """How unevenly a layer's experts were used by the tokens that are ``real`` and no padding: 1 is even."""
    experts = routing.scores.shape[-1]
    counts = (routing.expert_indices[..., None] == torch.arange(experts, device=real.device)).sum(
        dim=(0, 1, 2)
    )
    means = (routing.scores * real[..., None]).sum(dim=(0, 1)) / real.sum()
    return experts * (counts.to(means.dtype) / counts.sum() * means).sum()


class _Chunked(torch.autograd.Function):
    """Forward also makes the gradients, while a chunk's logits are there; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        z: float,
        softcap: float | None,
        weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        grads = _Gradients(x, weight, product_type(x), ctx.needs_input_grad[:2])
        loss = x.new_zeros((), dtype=torch.promote_types(weight.dtype, torch.float32))
        entropy = loss.clone()
        for start in range(0, len(x), chunk):
            here = slice(start, start + chunk)
            grad, of_target, totals = _logits_grad(grads.logits(here), targets[here], z, softcap)
            row_weights = None if weights is None else weights[here]
            entropy += _weighted(totals - of_target, row_weights).sum()
            loss += z * _weighted(totals.square(), row_weights).sum()
            grads.add(here, grad, row_weights)
        ctx.save_for_backward(*grads.made())
        ctx.mark_non_differentiable(entropy)
        return loss + entropy, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        scale = grads[0]
        # In place: nothing else holds these gradients, and a copy of the head's would double its memory.
        scaled = (None if grad is None else grad.mul_(scale) for grad in (grad_x, grad_weight))
        return *scaled, *[None] * 5


class _LogProbs(torch.autograd.Function):
    """The gradient of a row's log-probability by its x needs no other row: that of cross-entropy, times -g.

    Beside a frozen head it is made with the logits, and backward scales it; a head that is trained has its
    logits computed again in the backward pass, and so its own gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        softcap: float | None,
        temperature: float,
    ) -> Tensor:
        # softcap tanh(logits / softcap) / T is a softcap of softcap / T on logits / T.
        cap = None if softcap is None else softcap / temperature
        ctx.given = chunk, cap, temperature, product_type(x)
        ctx.at_once = ctx.needs_input_grad[:2] == (True, False)
        made = _Gradients(x, weight, ctx.given[3], (ctx.at_once, False), temperature)
        found = x.new_empty(len(x), dtype=torch.promote_types(x.dtype, torch.float32))
        for start in range(0, len(x), chunk):
            here = slice(start, start + chunk)
            grad, of_target, totals = _logits_grad(made.logits(here), targets[here], 0.0, cap)
            found[here] = of_target - totals
            if ctx.at_once:
                made.add(here, grad, None)
        ctx.save_for_backward(*([made.made()[0]] if ctx.at_once else [x, weight, targets]))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.at_once:
            (by_x,) = ctx.saved_tensors
            return (by_x * -grads[0][:, None]).to(by_x.dtype), *[None] * 5
        x, weight, targets = ctx.saved_tensors
        chunk, cap, temperature, narrow = ctx.given
        made = _Gradients(x, weight, narrow, ctx.needs_input_grad[:2], temperature)
        for start in range(0, len(x), chunk):
            here = slice(start, start + chunk)
            made.add(here, _logits_grad(made.logits(here), targets[here], 0.0, cap)[0], -grads[0][here])
        return *made.made(), *[None] * 4


class _Gradients:
    """The gradients of x [n d] and weight [v d], those ``wanted``, by chunks of x weight^T / temperature."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        narrow: torch.dtype,
        wanted: Sequence[bool],
        temperature: float = 1.0,
    ) -> None:
        self.types, self.temperature = (x.dtype, weight.dtype), temperature
        self.trains_head = weight.requires_grad
        self.rows, self.head = x.to(narrow), weight.to(narrow)  # once, and not for each product of each chunk
        self.x = torch.empty_like(self.rows) if wanted[0] else None
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None

    def logits(self, here: slice) -> Tensor:
        with torch.autocast(self.rows.device.type, enabled=False):
            rows = self.rows[here]
            logits = rows @ self.head.T if self.trains_head else products((rows, self.head.T))
        return logits if self.temperature == 1 else logits.div_(self.temperature)

    def add(self, here: slice, grad: Tensor, row_weights: Tensor | None) -> None:
        """The part of a chunk whose logits have this gradient, each row times its weight."""
        rows = self.rows[here]
        if self.temperature != 1:
            grad /= self.temperature
        with torch.autocast(rows.device.type, enabled=False):
            if self.x is not None:
                if self.trains_head:
                    torch.mm(grad, self.head, out=self.x[here])
                else:
                    self.x[here] = products((grad, self.head))
                if row_weights is not None:
                    self.x[here] *= row_weights[:, None]
            if self.weight is None:  # a frozen head
                return
            if row_weights is not None:
                rows = (rows * row_weights[:, None]).to(rows.dtype)
            if grad.dtype == self.weight.dtype:
                self.weight.addmm_(grad.T, rows)
            else:
                self.weight += grad.T @ rows

    def made(self) -> tuple[Tensor | None, Tensor | None]:
        found = zip((self.x, self.weight), self.types, strict=True)
        x, weight = (None if grad is None else grad.to(kind) for grad, kind in found)
        return x, weight


def _weighted(x: Tensor, weights: Tensor | None) -> Tensor:
    return x if weights is None else x * weights


def _logits_grad(
    logits: Float[Tensor, "n v"], targets: Int[Tensor, "n"], z: float, softcap: float | None
) -> tuple[Float[Tensor, "n v"], Float[Tensor, "n"], Float[Tensor, "n"]]:
    """The loss' gradient by some rows of logits, in their place or not; and two sums a row.

    The sums: the logit of the target, and the logarithm of the sum of all exponentials.
    """
    fits = logits.device.type == "cpu" and logits.dtype in TYPES
    if KERNELS and fits and softcap is None:
        return logits, *torch.ops.cutaway.logits_grad_(logits, targets, z)
    return logits_grad(logits, targets, z, softcap)


def logits_grad(
    logits: Float[Tensor, "n v"], targets: Int[Tensor, "n"], z: float, softcap: float | None = None
) -> tuple[Float[Tensor, "n v"], Float[Tensor, "n"], Float[Tensor, "n"]]:
    """``_logits_grad`` by torch, for every type and with a soft-cap: the reference implementation."""
    wanted, kind = targets[:, None], logits.dtype
    logits = widened(logits)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    inner = 1 - (logits / softcap).square() if softcap is not None else None
    log_p = torch.log_softmax(logits, -1)
    of_target, total = logits.gather(-1, wanted), logits[:, :1] - log_p[:, :1]
    del logits
    grad = log_p.exp_()  # in place: the chunk's largest tensor
    if z:
        grad *= 1 + 2 * z * total
    grad.scatter_add_(-1, wanted, grad.new_full((), -1.0).expand_as(wanted))
    if inner is not None:
        grad *= inner
    return grad.to(kind), of_target[:, 0], total[:, 0]


def _logits_grad_in_place(logits: Tensor, targets: Tensor, z: float) -> tuple[Tensor, Tensor]:
    """``logits_grad`` by the native core, in place of contiguous logits; IndexError for a bad target."""
    targets, (count, size) = targets.contiguous(), logits.shape
    if count and not 0 <= int(targets.min()) <= int(targets.max()) < size:
        raise IndexError(f"a target is outside the vocabulary's 0 to {size - 1}")
    of_target, totals = _logits_grad_shapes(logits, targets, z)
    rows = native_loss.Rows(
        logits=logits.data_ptr(),
        bf16=logits.dtype == torch.bfloat16,
        rows=count,
        size=size,
        targets=targets.data_ptr(),
        of_target=of_target.data_ptr(),
        logs=totals.data_ptr(),
    )
    native_loss.logits_grad(rows, z, workers())
    return of_target, totals


def _logits_grad_shapes(logits: Tensor, targets: Tensor, _: float) -> tuple[Tensor, Tensor]:
    made = logits.new_empty(targets.shape, dtype=torch.float32)
    return made, torch.empty_like(made)


_LIBRARY = torch.library.Library("cutaway", "FRAGMENT")
_LIBRARY.define("logits_grad_(Tensor(a!) logits, Tensor targets, float z) -> (Tensor, Tensor)")
_LIBRARY.impl("logits_grad_", _logits_grad_in_place, "CPU")
torch.library.register_fake("cutaway::logits_grad_", _logits_grad_shapes, lib=_LIBRARY)
