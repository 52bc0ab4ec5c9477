"""Products with frozen matrices of floats, by tiles of bfloat16 where the processor has them (AMX).

Each float is split into two numbers of bfloat16, x = high + low, and of the four products three are summed,
in floats (native/train/product.cpp): 4e-6 of a result's norm off, where a sum of float32 is 3e-7 off, in half
its time. The reference implementation is torch's product, which serves every other processor and type.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from cutaway.layers.workers import KERNELS, workers
from cutaway.native import train as native_product
from cutaway.shapes import Float

Pair = tuple[Tensor, Tensor]  # a [n k] and b [k m], each pair with a k of its own
BLOCK = 32  # numbers of depth that a tile multiplies at once
LEAST = 1 << 16  # numbers of a matrix for which tiles pay
TILES = KERNELS and native_product.has_product()


def products(*pairs: Pair) -> Float[Tensor, "n m"]:
    """The sum of a b over ``pairs``, which are of one type, without a gradient."""
    if fits(*pairs[0]):
        a, b = zip(*pairs, strict=True)
        return torch.ops.cutaway.products([*a], [*b])
    return plain(pairs)


def fits(a: Float[Tensor, "... k"], b: Float[Tensor, "k m"]) -> bool:
    """Whether tiles multiply these. It does not depend on n: a row's result must not either."""
    of_floats = a.dtype == torch.float32 and b.dtype == torch.float32
    return TILES and of_floats and a.device.type == "cpu" and b.numel() >= LEAST


def product_type(x: Tensor) -> torch.dtype:
    """What products with x are computed in here: autocast's type, where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def plain(pairs: Sequence[Pair]) -> Float[Tensor, "n m"]:
    """``products`` by torch: the reference implementation."""
    (a, b), *others = pairs
    out = a @ b
    for a, b in others:
        out.addmm_(a, b)
    return out


def linear(x: Float[Tensor, "... k"], weight: Float[Tensor, "m k"]) -> Float[Tensor, "... m"]:
    """x weight' with a gradient of x alone, for the compiler to trace."""
    return torch.ops.cutaway.frozen_linear(x.flatten(0, -2), weight).view(*x.shape[:-1], -1)


def _products(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    # Names hold what addresses are taken of, until the core is done.
    a = [each if each.stride(1) == 1 else each.contiguous() for each in a]
    b = [each if 1 in each.stride() else each.contiguous() for each in b]
    out = a[0].new_empty(len(a[0]), b[0].shape[1])
    each = [
        native_product.Factors(
            a=one.data_ptr(),
            b=other.data_ptr(),
            a_row=one.stride(0),
            b_row=other.stride(0),
            b_column=other.stride(1),
            depth=one.shape[1],
        )
        for one, other in zip(a, b, strict=True)
    ]
    factors = (native_product.Factors * len(each))(*each)
    blocks = sum(-(-one.shape[1] // BLOCK) for one in a)
    rows, columns = out.shape
    by = workers()
    scratch = native_product.product_scratch(rows, columns, blocks, by.threads)
    room = torch.empty(scratch + 64, dtype=torch.uint8)
    native_product.product(
        native_product.Sum(
            of=ctypes.addressof(factors),
            out=out.data_ptr(),
            scratch=(room.data_ptr() + 63) // 64 * 64,
            count=len(a),
            rows=rows,
            columns=columns,
            out_row=out.stride(0),
        ),
        by,
    )
    return out


def _products_shape(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    return a[0].new_empty(len(a[0]), b[0].shape[1])


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
    (weight,) = ctx.saved_tensors  # pyright: ignore[reportAttributeAccessIssue]
    return torch.ops.cutaway.products([grad], [weight]), None


_LIBRARY = torch.library.Library("cutaway", "FRAGMENT")
_LIBRARY.define("products(Tensor[] a, Tensor[] b) -> Tensor")
_LIBRARY.define("frozen_linear(Tensor x, Tensor weight) -> Tensor")
_LIBRARY.impl("products", _products, "CPU")
_LIBRARY.impl("frozen_linear", lambda x, weight: _products([x], [weight.T]), "CPU")
torch.library.register_fake("cutaway::products", _products_shape, lib=_LIBRARY)
torch.library.register_fake(
    "cutaway::frozen_linear", lambda x, weight: x.new_empty(len(x), len(weight)), lib=_LIBRARY
)
torch.library.register_autograd("cutaway::frozen_linear", _backward, setup_context=_keep, lib=_LIBRARY)
