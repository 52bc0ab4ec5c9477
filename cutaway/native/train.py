"""Training's kernels (native/train/): attention there and back, and cross-entropy with its gradient.

Their references are the naive attention backend and train/loss.py.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from typing import NamedTuple

from cutaway.errors import OperationalError
from cutaway.native.library import function

INT, LONG, POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
SIZES = ("batch", "heads", "groups", "queries", "keys", "key_size", "value_size")
TENSORS = ("q", "k", "v", "out", "grad_out", "grad_q", "grad_k", "grad_v")


class Workers(NamedTuple):
    """How many threads work, and whose: the address of OpenMP's GOMP_parallel, or None for the core's own."""

    threads: int
    parallel: int | None


@cache
def parallel_of(library: str) -> int | None:
    """The address of the GOMP_parallel that a shared library calls; None where it has none."""
    with suppress(OSError, AttributeError):
        return ctypes.cast(ctypes.CDLL(library).GOMP_parallel, ctypes.c_void_p).value
    return None


class Rows(NamedTuple):
    """Addresses of logits [rows size], floats or ``bf16``, and of what belongs to each row.

    A row has its target, and room for its target's logit and the log of its sum of exponentials.
    """

    logits: int
    bf16: bool
    rows: int
    size: int
    targets: int
    of_target: int
    logs: int


def logits_grad(of: Rows, z: float, by: Workers) -> None:
    """Logits become the gradient by them; the caller vouches for every address, and that targets are ids."""
    call = function(
        "cutaway_loss", POINTER, INT, LONG, LONG, POINTER, ctypes.c_float, POINTER, POINTER, INT, POINTER
    )
    call(of.logits, of.bf16, of.rows, of.size, of.targets, z, of.of_target, of.logs, by.threads, by.parallel)


class Vectors(ctypes.Structure):
    """native/train/attention.hpp's TensorOf: a tensor's address, and its batch, head and token strides."""

    _fields_ = (("at", POINTER), ("batch", LONG), ("head", LONG), ("token", LONG))


class Heads(ctypes.Structure):
    """native/train/attention.hpp's Heads, field by field."""

    _fields_ = (
        *((name, LONG) for name in SIZES),
        *((name, Vectors) for name in TENSORS),
        ("seen", POINTER),
        ("logs", POINTER),
        ("scratch", POINTER),
        ("scale", ctypes.c_float),
        ("bf16", ctypes.c_int32),
        ("causal", ctypes.c_int32),
    )


def scratch(problem: Heads) -> int:
    """How many floats of ``scratch`` each worker needs."""
    return function("cutaway_train_attention_scratch", POINTER, result=LONG)(ctypes.byref(problem))


def attend(problem: Heads, by: Workers) -> None:
    """Fills ``out`` and ``logs``; the caller vouches for every address."""
    _call("cutaway_train_attention", problem, by)


def back(problem: Heads, by: Workers) -> None:
    """Fills ``grad_q``, ``grad_k`` and ``grad_v``; the caller vouches for every address."""
    _call("cutaway_train_attention_backward", problem, by)


def _call(name: str, problem: Heads, by: Workers) -> None:
    function(name, POINTER, ctypes.c_int32, POINTER)(ctypes.byref(problem), by.threads, by.parallel)


class Factors(ctypes.Structure):
    """native/train/product.hpp's Factors."""

    _fields_ = (
        ("a", POINTER),
        ("b", POINTER),
        *((name, LONG) for name in ("a_row", "b_row", "b_column", "depth")),
    )


class Sum(ctypes.Structure):
    """native/train/product.hpp's Sum."""

    _fields_ = (
        *((name, POINTER) for name in ("of", "out", "scratch")),
        *((name, LONG) for name in ("count", "rows", "columns", "out_row")),
        ("adds", ctypes.c_int32),
        ("spare", ctypes.c_int32),
    )


def has_product() -> bool:
    """Whether core (one built earlier has no products) and processor multiply by tiles of bfloat16."""
    with suppress(AttributeError):
        return product_scratch(1, 1, 1, 1) > 0
    return False


def product_scratch(rows: int, columns: int, blocks: int, threads: int) -> int:
    """Bytes of ``scratch`` for products of so many blocks of 32 numbers of depth; 0 without such tiles."""
    call = function("cutaway_sum_of_products_scratch", LONG, LONG, LONG, INT, result=LONG)
    return call(rows, columns, blocks, threads)


def product(sum: Sum, by: Workers) -> None:
    """Fills ``out`` with the sum of the products; the caller vouches for every address."""
    function("cutaway_sum_of_products", POINTER, INT, POINTER)(ctypes.byref(sum), by.threads, by.parallel)


def has_elementwise() -> bool:
    """Whether the core has the functions below: one built earlier has not."""
    with suppress(AttributeError, OperationalError):
        names = ("cutaway_swiglu", "cutaway_rotate", "cutaway_rms_norm")
        return all(function(name) is not None for name in names)
    return False


class Gated(NamedTuple):
    """Addresses of floats [count]: gate and up, and where silu(gate) up goes."""

    gate: int
    up: int
    count: int
    out: int


class GatedGradients(NamedTuple):
    """Addresses of floats [count]: gate, up, the gradient of silu(gate) up, and where their own go."""

    gate: int
    up: int
    grad_out: int
    count: int
    grad_gate: int
    grad_up: int


def swiglu(of: Gated, by: Workers) -> None:
    """Fills ``out``; the caller vouches for every address."""
    call = function("cutaway_swiglu", POINTER, POINTER, LONG, POINTER, INT, POINTER)
    call(*of, by.threads, by.parallel)


def swiglu_backward(of: GatedGradients, by: Workers) -> None:
    """Fills ``grad_gate`` and ``grad_up``; the caller vouches for every address."""
    call = function("cutaway_swiglu_backward", *[POINTER] * 3, LONG, *[POINTER] * 2, INT, POINTER)
    call(*of, by.threads, by.parallel)


class Rotated(ctypes.Structure):
    """native/train/rotation.hpp's Rotated."""

    _fields_ = (
        *((name, POINTER) for name in ("of", "cos", "sin", "to")),
        *((name, LONG) for name in ("tokens", "heads", "size", "half")),
        *((name, LONG) for name in ("of_token", "of_head", "to_token", "to_head")),
        ("back", ctypes.c_int32),
        ("spare", ctypes.c_int32),
    )


def rotate(of: Rotated, by: Workers) -> None:
    """Fills ``to``; the caller vouches for every address."""
    function("cutaway_rotate", POINTER, INT, POINTER)(ctypes.byref(of), by.threads, by.parallel)


class Normed(ctypes.Structure):
    """native/train/norm.cpp's Normed."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "weight", "grad_out", "inverse", "out")),
        *((name, LONG) for name in ("rows", "width")),
        ("eps", ctypes.c_float),
        ("spare", ctypes.c_int32),
    )


def rms_norm(of: Normed, by: Workers) -> None:
    """Fills ``inverse`` and ``out``; the caller vouches for every address."""
    function("cutaway_rms_norm", POINTER, INT, POINTER)(ctypes.byref(of), by.threads, by.parallel)


def rms_norm_backward(of: Normed, by: Workers) -> None:
    """Fills ``out`` with the gradient of x; the caller vouches for every address."""
    function("cutaway_rms_norm_backward", POINTER, INT, POINTER)(ctypes.byref(of), by.threads, by.parallel)
