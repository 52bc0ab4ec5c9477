"""FlashAttention (2205.14135) by the native core, for training on a CPU: no scores in memory.

A block of queries meets a tile of keys.

torch's fused kernel for a CPU takes half as long again in float32, and three times as long in bf16, whose
scores and sums are floats here too. For torch it is one operation with its own backward pass: the compiler
cannot look into it, so that it neither keeps the pattern for the backward pass nor computes it twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cutaway.attention.backends import matmul
from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.attention.backends.sdpa import masking
from cutaway.errors import UserError
from cutaway.layers.workers import KERNELS, TYPES, workers
from cutaway.native import train as train_attention
from cutaway.shapes import Bool, Float


def attend(inputs: AttentionInputs) -> Float[Tensor, "b h t v"]:
    """UserError where something is done to scores but hiding them, and where there are no kernels for it."""
    reason = unsupported_reason(inputs)
    if reason is not None:
        raise UserError(f"attention by the native core: {reason}; the naive backend does all of it")
    seen, causal = masking(inputs)
    return torch.ops.cutaway.attend(inputs.q, inputs.k, inputs.v, seen, causal, inputs.scale)[0]


def unsupported_reason(inputs: AttentionInputs) -> str | None:
    """Why this backend cannot compute these inputs, or None."""
    q, k, v = inputs.q, inputs.k, inputs.v
    if q.device.type != "cpu" or q.dtype not in TYPES or not q.dtype == k.dtype == v.dtype:
        return f"it is for float32 or bfloat16 on a CPU, and this is {q.dtype}, {k.dtype} on {q.device}"
    if not KERNELS:
        return "there is no native core, or it has no instructions of this processor's to use"
    return matmul.unsupported_reason(inputs)


def pays(inputs: AttentionInputs) -> bool:
    """Whether this backend is the fastest one: in training, where the backward pass is most of the time."""
    return matmul.needs_gradients(inputs) and unsupported_reason(inputs) is None


def _attend(
    q: Float[Tensor, "b h t k"],
    k: Float[Tensor, "b g s k"],
    v: Float[Tensor, "b g s v"],
    seen: Bool[Tensor, "n 1 t s"] | None,
    causal: bool,
    scale: float,
) -> tuple[Float[Tensor, "b h t v"], Float[Tensor, "b h t"]]:
    """z, and the logarithm of the sum of each query's exponentiated scores."""
    out, logs = _attend_shapes(q, k, v, seen, causal, scale)
    _run(train_attention.attend, {"q": q, "k": k, "v": v, "out": out}, logs, seen, causal, scale)
    return out, logs


def _attend_shapes(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, causal: bool, scale: float) -> Any:
    return matmul.like(q, v.shape[-1]), q.new_empty(q.shape[:3], dtype=torch.float32)


def _backward_heads(
    grad: Float[Tensor, "b h t v"],
    q: Float[Tensor, "b h t k"],
    k: Float[Tensor, "b g s k"],
    v: Float[Tensor, "b g s v"],
    out: Float[Tensor, "b h t v"],
    logs: Float[Tensor, "b h t"],
    seen: Bool[Tensor, "n 1 t s"] | None,
    causal: bool,
    scale: float,
) -> tuple[Float[Tensor, "b h t k"], Float[Tensor, "b g s k"], Float[Tensor, "b g s v"]]:
    """The gradients of q, k and v."""
    grads = _backward_shapes(grad, q, k, v, out, logs, seen, causal, scale)
    made = dict(zip(("grad_q", "grad_k", "grad_v"), grads, strict=True))
    tensors = {"q": q, "k": k, "v": v, "out": out, "grad_out": grad, **made}
    _run(train_attention.back, tensors, logs, seen, causal, scale)
    return grads


def _backward_shapes(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return matmul.like(q, q.shape[-1]), matmul.like(k, k.shape[-1]), matmul.like(v, v.shape[-1])


def _run(
    what: Any, tensors: dict[str, Tensor], logs: Tensor, seen: Tensor | None, causal: bool, scale: float
) -> None:
    # Names hold what addresses are taken of, until the core is done.
    tensors = {name: x if x.stride(-1) == 1 else x.contiguous() for name, x in tensors.items()}
    logs = logs.contiguous()
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    b, h, t, size = q.shape
    if seen is not None:
        seen = seen.expand(b, 1, t, k.shape[2]).contiguous()
    inputs = train_attention.Heads(b, h, k.shape[1], t, k.shape[2], size, v.shape[3])
    for name, x in tensors.items():
        setattr(inputs, name, train_attention.Vectors(x.data_ptr(), *x.stride()[:3]))
    inputs.seen = None if seen is None else seen.data_ptr()
    inputs.logs, inputs.scale = logs.data_ptr(), scale
    inputs.bf16, inputs.causal = q.dtype == torch.bfloat16, causal
    by = workers()
    room = torch.empty(by.threads * train_attention.scratch(inputs), dtype=torch.float32)
    inputs.scratch = room.data_ptr()
    what(inputs, by)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, seen, ctx.causal, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, seen)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, logs, seen = ctx.saved_tensors
    grads = torch.ops.cutaway.attend_backward(grad, q, k, v, out, logs, seen, ctx.causal, ctx.scale)
    return *grads, None, None, None


_LIBRARY = torch.library.Library("cutaway", "FRAGMENT")
_LIBRARY.define(
    "attend(Tensor q, Tensor k, Tensor v, Tensor? seen, bool causal, float scale) -> (Tensor, Tensor)"
)
_LIBRARY.define(
    "attend_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logs, Tensor? seen, "
    "bool causal, float scale) -> (Tensor, Tensor, Tensor)"
)
_LIBRARY.impl("attend", _attend, "CPU")
_LIBRARY.impl("attend_backward", _backward_heads, "CPU")
torch.library.register_fake("cutaway::attend", _attend_shapes, lib=_LIBRARY)
torch.library.register_fake("cutaway::attend_backward", _backward_shapes, lib=_LIBRARY)
torch.library.register_autograd("cutaway::attend", _backward, setup_context=_keep, lib=_LIBRARY)
