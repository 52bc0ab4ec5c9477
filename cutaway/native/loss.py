"""Cross-entropy of rows of logits and its gradient (native/train/loss.cpp; reference: train/loss.py)."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

from cutaway.native.host import Workers
from cutaway.native.library import function

INT, LONG, POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p


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
