"""The loss of a batch, next to the model and not inside it: the model never sees a target.

    loss = -log softmax(logits)[target] + z (log sum exp logits)^2

The second term, z-loss, keeps the logits' sum from drifting (PaLM, 2204.02311). The matrix of all logits
is the largest tensor of a small model's step; here it never stands whole. Rows are taken a chunk at a
time: their logits, their loss, and at once their gradient, as in 2410.10989, so that nothing of a chunk
outlives it. ``plain`` is the definition and judges it. Where there is a native core, the gradient even takes
the place of the logits (native/train/loss.cpp).

A sparse layer adds a loss of its own, so that its router does not send all tokens to a few experts, which
would then learn all there is to learn and be chosen even more (2101.03961, equations 4 to 6):

    balance = E sum over experts e of f_e P_e      f_e: e's share of what was chosen, P_e: its mean score

which is 1 where all experts are chosen alike. f has no gradient; P's lowers the scores of those that are
chosen most.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cutaway.layers.moe import Routing
from cutaway.layers.norm import widened
from cutaway.layers.workers import KERNELS, TYPES, workers
from cutaway.model.decoder import Decoder
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
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The same of logits = x weight^T, bounded by ``softcap``: to go back from, and without z's share."""
    return _Chunked.apply(x, weight, targets, chunk, z, softcap)  # type: ignore[return-value]


def balance(routing: Routing, real: Bool[Tensor, "b t"]) -> Float[Tensor, ""]:
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
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, chunk: int, z: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        kind = x.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        with torch.autocast(
            kind, enabled=False
        ):  # both are cast once, and not for each product of each chunk
            read, head = x.to(narrow), weight.to(narrow)
            grad_x = torch.empty_like(read) if x.requires_grad else None
            grad_weight = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            loss = x.new_zeros((), dtype=grad_weight.dtype)
            entropy = loss.clone()
            for start in range(0, len(x), chunk):
                rows, wanted = read[start : start + chunk], targets[start : start + chunk]
                grad, of_target, totals = _slope(rows @ head.T, wanted, z, softcap)
                entropy += (totals - of_target).sum()
                loss += z * totals.square().sum()
                if grad_x is not None:
                    torch.mm(grad, head, out=grad_x[start : start + chunk])
                if grad.dtype == grad_weight.dtype:
                    grad_weight.addmm_(grad.T, rows)
                else:
                    grad_weight += grad.T @ rows
        ctx.save_for_backward(None if grad_x is None else grad_x.to(x.dtype), grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(entropy)
        return loss + entropy, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        scale = grads[0]
        # In place: these gradients are nobody else's, and a copy of the head's would cost its size again.
        return None if grad_x is None else grad_x.mul_(scale), grad_weight.mul_(scale), None, None, None, None


def _slope(
    logits: Float[Tensor, "n v"], targets: Int[Tensor, "n"], z: float, softcap: float | None
) -> tuple[Float[Tensor, "n v"], Float[Tensor, "n"], Float[Tensor, "n"]]:
    """The loss' gradient by some rows of logits, which may take their place; each row's logit of its target,
    and the logarithm of the sum of the exponentials of all.
    """
    fits = logits.device.type == "cpu" and logits.dtype in TYPES
    if KERNELS and fits and softcap is None:
        return logits, *torch.ops.cutaway.slope_(logits, targets, z)
    return slope(logits, targets, z, softcap)


def slope(
    logits: Float[Tensor, "n v"], targets: Int[Tensor, "n"], z: float, softcap: float | None = None
) -> tuple[Float[Tensor, "n v"], Float[Tensor, "n"], Float[Tensor, "n"]]:
    """``_slope`` by torch: the native core's twin, for every type and with a soft-cap."""
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


def _slope_in_place(logits: Tensor, targets: Tensor, z: float) -> tuple[Tensor, Tensor]:
    """``slope`` by the native core: logits, which lie row after row, become the gradient. Raises IndexError
    for a target that is no id, as torch does.
    """
    targets, (count, size) = targets.contiguous(), logits.shape
    if count and not 0 <= int(targets.min()) <= int(targets.max()) < size:
        raise IndexError(f"a target lies outside the model's 0 to {size - 1}")
    of_target, totals = _slope_shapes(logits, targets, z)
    rows = native_loss.Rows(
        logits=logits.data_ptr(),
        bf16=logits.dtype == torch.bfloat16,
        rows=count,
        size=size,
        targets=targets.data_ptr(),
        of_target=of_target.data_ptr(),
        logs=totals.data_ptr(),
    )
    native_loss.slope(rows, z, workers())
    return of_target, totals


def _slope_shapes(logits: Tensor, targets: Tensor, _: float) -> tuple[Tensor, Tensor]:
    made = logits.new_empty(targets.shape, dtype=torch.float32)
    return made, torch.empty_like(made)


_LIBRARY = torch.library.Library("cutaway", "FRAGMENT")
_LIBRARY.define("slope_(Tensor(a!) logits, Tensor targets, float z) -> (Tensor, Tensor)")
_LIBRARY.impl("slope_", _slope_in_place, "CPU")
torch.library.register_fake("cutaway::slope_", _slope_shapes, lib=_LIBRARY)


class Objective(nn.Module):
    """A model with its loss: a batch in, the sum of its losses out, ready to go back from.

    One module, so that what wraps modules (``fully_shard``) sees the whole of a step.
    """

    def __init__(self, model: Decoder, chunk: int, z: float = 0.0, balance: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.chunk, self.z, self.balance = chunk, z, balance
        self.routed = model.routed

    def forward(
        self,
        ids: Int[Tensor, "b t"],
        targets: Int[Tensor, "b t"],
        pos: Int[Tensor, "b t"],
        documents: Int[Tensor, "b t"] | None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The sum of the losses, and of the cross-entropies alone; ``documents`` None: each row is one. The
        experts' balance over all these rows counts once a token, for each sparse layer.
        """
        x, routings = self.routed(ids, pos, documents=documents, in_order=documents is None)
        x = self.model.norm(x).flatten(0, 1)
        weight = self.model.embedding.weight if self.model.head is None else self.model.head.weight
        loss, entropy = chunked(x, weight, targets.flatten(), self.chunk, self.z, self.model.config.softcap)
        uneven = [balance(routing, pos >= 0) for routing in routings]
        return loss + self.balance * targets.numel() * sum(uneven), entropy
