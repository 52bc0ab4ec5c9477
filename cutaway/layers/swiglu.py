"""silu(gate) * up of an MLP (SwiGLU, 2002.05202) in one pass over memory, and its gradients in another.

    s = sigmoid(gate)       d gate = (d up) s (1 + gate (1 - s))       d up = d gate s

where d is the gradient of the product. torch's operations, the reference implementation, read and write more
than twice as much. Both need the native core (native/train/swiglu.cpp).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from cutaway.layers.workers import KERNELS, workers
from cutaway.native import train as native_swiglu
from cutaway.shapes import Float

ONE_PASS = KERNELS and native_swiglu.has_elementwise()


def swiglu(gate: Float[Tensor, "... f"], up: Float[Tensor, "... f"]) -> Float[Tensor, "... f"]:
    """silu(gate) * up, by the native core for contiguous float32 on a CPU."""
    if torch.compiler.is_compiling() or not fits(gate, up):
        return F.silu(gate) * up
    return _SwiGLU.apply(gate, up)  # type: ignore[return-value]


def fits(*tensors: Tensor) -> bool:
    """Whether the core reads these."""
    plain = (x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous() for x in tensors)
    return ONE_PASS and all(plain)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        given = native_swiglu.Gated(gate.data_ptr(), up.data_ptr(), gate.numel(), out.data_ptr())
        native_swiglu.swiglu(given, workers())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad, grad_gate, grad_up = grads[0].contiguous(), torch.empty_like(gate), torch.empty_like(up)
        given = native_swiglu.GatedGradients(
            gate=gate.data_ptr(),
            up=up.data_ptr(),
            grad_out=grad.data_ptr(),
            count=gate.numel(),
            grad_gate=grad_gate.data_ptr(),
            grad_up=grad_up.data_ptr(),
        )
        native_swiglu.swiglu_backward(given, workers())
        return grad_gate, grad_up
