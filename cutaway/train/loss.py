"""Cross-entropy without the matrix of all logits, and the load-balancing loss; ``objectives`` put them
together.

    loss = w (-log softmax(logits)[target] + z (log sum exp logits)^2)

The logits are the largest tensor of a small model's step, so they are computed a chunk of rows at a time,
and each chunk's gradient at once (2410.10989). ``plain`` is the reference. Where there is a native core the
gradient takes the place of the logits (native/train/loss.cpp).

Load balancing keeps a router from sending all tokens to a few experts (2101.03961, equations 4 to 6):

    E sum over experts e of f_e P_e      f_e: fraction of the choices that fell on e, P_e: its mean score

It is 1 where all experts are chosen equally. f has no gradient; P's lowers the scores of the most chosen.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cutaway.layers.moe import Routing
from cutaway.layers.norm import widened
from cutaway.layers.workers import KERNELS, TYPES, workers
from cutaway.native import loss as native_loss
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
    """The loss of logits = x weight^T, bounded by ``softcap``, each row times its ``weights`` (None: 1);
    and its cross-entropy alone, which has no gradient.
    """
    return _Chunked.apply(x, weight, targets, chunk, z, softcap, weights)  # type: ignore[return-value]


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
        kind = x.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(
            kind, enabled=False
        ):  # both are cast once, and not for each product of each chunk
            read, head = x.to(narrow), weight.to(narrow)
            grad_x = torch.empty_like(read) if x.requires_grad else None
            wide = torch.promote_types(weight.dtype, torch.float32)
            grad_weight = torch.zeros_like(weight, dtype=wide) if weight.requires_grad else None
            loss = x.new_zeros((), dtype=wide)
            entropy = loss.clone()
            for start in range(0, len(x), chunk):
                rows, wanted = read[start : start + chunk], targets[start : start + chunk]
                grad, of_target, totals = _logits_grad(rows @ head.T, wanted, z, softcap)
                row_weights = None if weights is None else weights[start : start + chunk]
                entropy += _weighted(totals - of_target, row_weights).sum()
                loss += z * _weighted(totals.square(), row_weights).sum()
                if grad_x is not None:
                    torch.mm(grad, head, out=grad_x[start : start + chunk])
                    if row_weights is not None:
                        grad_x[start : start + chunk] *= row_weights[:, None]
                if grad_weight is None:  # a frozen head
                    continue
                if row_weights is not None:
                    rows = (rows * row_weights[:, None]).to(rows.dtype)
                if grad.dtype == grad_weight.dtype:
                    grad_weight.addmm_(grad.T, rows)
                else:
                    grad_weight += grad.T @ rows
        grads = (grad_x, x), (grad_weight, weight)
        ctx.save_for_backward(*(None if grad is None else grad.to(of.dtype) for grad, of in grads))
        ctx.mark_non_differentiable(entropy)
        return loss + entropy, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        scale = grads[0]
        # In place: nothing else holds these gradients, and a copy of the head's would double its memory.
        scaled = (None if grad is None else grad.mul_(scale) for grad in (grad_x, grad_weight))
        return *scaled, *[None] * 5


def _weighted(x: Tensor, weights: Tensor | None) -> Tensor:
    return x if weights is None else x * weights


def _logits_grad(
    logits: Float[Tensor, "n v"], targets: Int[Tensor, "n"], z: float, softcap: float | None
) -> tuple[Float[Tensor, "n v"], Float[Tensor, "n"], Float[Tensor, "n"]]:
    """The loss' gradient by some rows of logits, which may take their place; each row's logit of its target,
    and the logarithm of the sum of the exponentials of all.
    """
    fits = logits.device.type == "cpu" and logits.dtype in TYPES
    if KERNELS and fits and softcap is None:
        return logits, *torch.ops.cutaway.logits_grad_(logits, targets, z)
    return logits_grad(logits, targets, z, softcap)


def logits_grad(
    logits: Float[Tensor, "n v"], targets: Int[Tensor, "n"], z: float, softcap: float | None = None
) -> tuple[Float[Tensor, "n v"], Float[Tensor, "n"], Float[Tensor, "n"]]:
    """``_logits_grad`` by torch: the native core's twin, for every type and with a soft-cap."""
    wanted, kind = targets[:, None], logits.dtype
    logits = widened(logits)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    inner = 1 - (logits / softcap).square() if softcap is not None else None
    shares = torch.log_softmax(logits, -1)
    of_target, total = logits.gather(-1, wanted), logits[:, :1] - shares[:, :1]
    del logits
    grad = shares.exp_()  # in place: the chunk's largest tensor
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
        raise IndexError(f"a target lies outside the model's 0 to {size - 1}")
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
