"""A model with adapters: their modules, the matrices that they change, and the model without them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from torch import Tensor, nn

from cutaway.attention.common.softmax import SoftmaxAttention
from cutaway.errors import UserError
from cutaway.layers.mlp import MLP
from cutaway.layers.packed import PackedLinear
from cutaway.model.decoder import Decoder
from cutaway.runtime.matmul import reads_eight_bits

MATRICES = ("query", "key", "value", "out", "gate", "up", "down")
Matrix = nn.Linear | PackedLinear


class Adapter(nn.Module):
    """A module that computes as its frozen ``base`` alone while it is not ``enabled``."""

    enabled = True


@contextmanager
def reference(model: nn.Module) -> Iterator[None]:
    """The model without its adapters: what it was before training. Raises UserError if it has none."""
    found = [module for module in model.modules() if isinstance(module, Adapter)]
    if not found:
        raise UserError("all weights are trained, so the model before training is not here any more")
    try:
        for module in found:
            module.enabled = False
        yield
    finally:
        for module in found:
            module.enabled = True


def matrices(model: Decoder, targets: Sequence[str]) -> Iterator[tuple[nn.Module, str, str, Matrix]]:
    """The matrices of the blocks whose names end as a target: parent, name in it, whole name, matrix.

    Raises UserError for a target that the model has not.
    """
    found = [
        (path.rpartition("."), module)
        for path, module in model.blocks.named_modules()
        if isinstance(module, Matrix) and path.rpartition(".")[2] in targets
    ]
    if missing := set(targets) - {name for (_, _, name), _ in found}:
        raise UserError(f"config.adapter.targets: this model has no matrix {min(missing)!r}")
    for (parent, _, name), module in found:
        yield model.blocks.get_submodule(parent), name, f"blocks.{parent}.{name}", module


def array(parameter: Tensor) -> np.ndarray:
    """A trained parameter's values. Where devices hold parts of it, every process must ask for them."""
    gather = getattr(parameter, "full_tensor", None)  # a DTensor's
    return (parameter if gather is None else gather()).detach().cpu().numpy()


def freeze(model: nn.Module) -> None:
    """No parameter of the model takes a gradient, and a packed base computes as the runtime does.

    Its matrices multiply by the runtime's kernels, and where these round vectors to eight bits, attention
    reads keys and values as halves: what is rounded later magnifies that difference.
    """
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear) and name != "head":  # the head's rows are read as numbers
            module.serve()
        if isinstance(module, MLP):
            module.recomputes = module.one_pass = True
        if isinstance(module, SoftmaxAttention):
            key = module.key
            module.halves = isinstance(key, PackedLinear) and reads_eight_bits(key.packed.type)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
