"""The equation with every score in memory: the reference implementation, which can be traced and edited."""

import torch
from torch import Tensor

from cutaway.attention.backends.inputs import AttentionInputs
from cutaway.hooks import tap
from cutaway.layers.norm import widened
from cutaway.shapes import Float


def attend(inputs: AttentionInputs) -> Float[Tensor, "b h t v"]:
    """Taps ``scores`` [b h t s], unmasked, and ``pattern`` [b h t s], whose rows sum to 1 or are 0.

    With sinks a row of the pattern sums to less than 1: the sink has the rest.
    """
    q, k, v = inputs.q, inputs.k, inputs.v
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(-2, -1) * inputs.scale
    if inputs.softcap is not None:
        scores = inputs.softcap * torch.tanh(scores / inputs.softcap)
    if inputs.bias is not None:
        scores = scores + inputs.bias(inputs.query.pos, inputs.key.pos).to(scores.dtype)
    scores = tap("scores", scores)
    seen = inputs.seen()
    rows = widened(scores).masked_fill(~seen, -torch.inf)
    if inputs.sinks is not None:
        sink = inputs.sinks.to(rows.dtype)[None, :, None, None].expand(*rows.shape[:-1], 1)
        rows = torch.cat((rows, sink), dim=-1)
    pattern = torch.softmax(rows, dim=-1)[..., : scores.shape[-1]]
    pattern = torch.where(seen.any(-1, keepdim=True), pattern, 0.0).to(v.dtype)
    return tap("pattern", pattern) @ v
