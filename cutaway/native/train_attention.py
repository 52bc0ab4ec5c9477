"""Attention for training, there and back (native/train/attention.cpp; reference: the naive backend)."""

from __future__ import annotations

import ctypes

from cutaway.native.host import Workers
from cutaway.native.library import function

LONG, POINTER = ctypes.c_int64, ctypes.c_void_p
SIZES = ("batch", "heads", "groups", "queries", "keys", "key_size", "value_size")
TENSORS = ("q", "k", "v", "out", "grad_out", "grad_q", "grad_k", "grad_v")


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
