"""Activation checkpointing: the backward pass computes a value again, which the forward pass dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Recomputed:
    """``compute`` of x, where nothing between x and its value is held for the backward pass.

    What reads the value inside ``forgotten`` does not hold it either. The random numbers of ``compute``
    (dropout) are those of the first time, on a CPU.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.compute, self.x, self.kind = compute, x, x.device.type
        self.random = torch.get_rng_state()
        self.autocast = torch.is_autocast_enabled(self.kind), torch.get_autocast_dtype(self.kind)
        self.made: tuple[Tensor, Tensor] | None = None

    def value(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """The value, with a gradient of x and of ``parameters``."""
        return _Value.apply(self.x, self, *parameters)  # type: ignore[return-value]

    def again(self) -> tuple[Tensor, Tensor]:
        """x as a leaf and the value of it, with its graph: made once, until it was gone through."""
        if self.made is None:
            enabled, dtype = self.autocast
            on = torch.autocast(self.kind, dtype, enabled=enabled)
            with torch.random.fork_rng(devices=[]), torch.enable_grad(), on:
                torch.set_rng_state(self.random)
                leaf = self.x.detach().requires_grad_()
                self.made = leaf, self.compute(leaf)
        return self.made

    def forgotten(self, value: Tensor) -> AbstractContextManager[None]:
        """Where the value is read: how it is made takes its place in the graph."""
        address = value.untyped_storage().data_ptr()

        def pack(kept: Tensor) -> Any:
            same = kept.untyped_storage().data_ptr() == address
            return (kept.shape, kept.stride(), kept.storage_offset()) if same else kept

        def unpack(kept: Any) -> Tensor:
            return kept if isinstance(kept, Tensor) else self.again()[1].detach().as_strided(*kept)

        return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, of: Recomputed, *parameters: nn.Parameter) -> Tensor:
        ctx.given = of, parameters
        return of.compute(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        of, parameters = ctx.given
        leaf, value = of.again()
        of.made = None
        first, *others = torch.autograd.grad(value, (leaf, *parameters), grads[0])
        return first, None, *others
