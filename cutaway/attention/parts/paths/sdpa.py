"""Attention by torch's fused kernel: the scores never stand in memory."""

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cutaway.attention.parts.score import Problem
from cutaway.attention.parts.visibility import Causal, mask
from cutaway.shapes import Float


def attend(problem: Problem) -> Float[Tensor, "b h t v"]:
    """Causal problems in order need no mask; all others lower to a dense one."""
    causal = problem.in_order and problem.visibility == Causal()
    seen = None if causal else mask(problem.visibility, problem.query, problem.key)[:, None]
    return scaled_dot_product_attention(
        problem.q,
        problem.k,
        problem.v,
        attn_mask=seen,
        is_causal=causal,
        scale=problem.scale,
        enable_gqa=problem.q.shape[1] != problem.k.shape[1],
    )
