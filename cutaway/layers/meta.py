"""Modules laid out without memory, on the meta device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DRAWS = (
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_uniform_,
    Tensor.normal_,
    Tensor.uniform_,
)
# Functions that compute a first value from random numbers.
ELEMENTWISE = (Tensor.exp, Tensor.expm1, Tensor.log)


class _Undrawn(TorchFunctionMode):
    """Leaves weights undrawn: to draw one on the meta device torch imports its compiler.

    The import takes longer than filling a model of 135M weights. Arithmetic on such a weight does too; all
    that there is of one, its shape, is that of the draw.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func in DRAWS or func in ELEMENTWISE:
            return given["tensor"] if "tensor" in given else args[0]
        return func(*args, **given)


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules built here have weights with a shape and without memory or values."""
    with torch.device("meta"), _Undrawn():
        yield
