"""torch's FlexAttention, compiled for each rule: it runs only when called, and needs a C++ compiler.

It computes the same blocks as ``blocked``, in one kernel. On a CPU it has no backward pass. Past a number of
shapes torch stops compiling and holds every score in memory, with only a line in a log; here that is an
error.
"""

from __future__ import annotations

import shutil
from functools import cache
from typing import Any

import torch
from torch import Tensor

from cutaway.attention.backends import blocked
from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.attention.common.visibility import together
from cutaway.errors import OperationalError, UserError
from cutaway.shapes import Float

BLOCK = 128  # what torch's kernels are tuned for


def attend(inputs: AttentionInputs) -> Float[Tensor, "b h t v"]:
    """UserError where it cannot serve, with the reason; OperationalError if torch would fall back."""
    reason = unsupported_reason(inputs)
    if reason is not None:
        raise UserError(f"flex attention: {reason}; the blocked backend needs none of it")
    from torch._dynamo.exc import FailOnRecompileLimitHit  # the import of the compiler takes seconds

    try:
        return _compiled()(
            inputs.q,
            inputs.k,
            inputs.v,
            block_mask=_blocks(inputs),
            scale=inputs.scale,
            enable_gqa=True,  # which also serves as many key heads as query heads
        )
    except FailOnRecompileLimitHit as error:
        raise OperationalError(
            f"flex attention: torch compiled for too many shapes and would fall back: {error}"
        ) from error


def unsupported_reason(inputs: AttentionInputs) -> str | None:
    """Why this backend cannot compute these inputs, or None."""
    cpu = inputs.q.device.type == "cpu"
    if cpu and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        return "there is no C++ compiler"
    if cpu and torch.is_grad_enabled() and any(x.requires_grad for x in (inputs.q, inputs.k, inputs.v)):
        return "it has no backward pass on a CPU"
    if inputs.q.dtype == torch.float64:
        return "it has no float64"
    odd = {
        "a soft-cap": inputs.softcap,
        "a bias": inputs.bias,
        "sinks": inputs.sinks,
        "chosen keys": inputs.chosen,
    }
    for name, value in odd.items():
        if value is not None:
            return f"{name} would need a kernel that is not written here"
    return None


@cache
def _compiled() -> Any:
    """``fullgraph`` makes torch raise where it would fall back."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


def _blocks(inputs: AttentionInputs) -> Any:
    """The blocks in reach, and the rule inside them."""
    from torch.nn.attention.flex_attention import BlockMask

    query, key, rule = inputs.query, inputs.key, inputs.visibility
    of_query, of_key = query.documents, key.documents

    def sees(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        i, j = query.pos[b, t], key.pos[b, s]
        seen = rule.sees(i, j) & (i >= 0) & (j >= 0)
        if of_query is None or of_key is None:
            return seen
        return seen & together(of_query[b, t], of_key[b, s])

    reach = blocked.reachable(inputs, BLOCK).expand(inputs.q.shape[0], 1, -1, -1)
    count = reach.sum(-1).int()
    order = reach.int().argsort(dim=-1, descending=True, stable=True).int()
    lengths = inputs.q.shape[2], inputs.k.shape[2]
    return BlockMask.from_kv_blocks(count, order, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=lengths)
