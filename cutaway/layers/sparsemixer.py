"""SparseMixer (2310.00811), as Phi-3.5-MoE chooses two experts (2404.14219).

    a = argmax l                    w_a = softmax of l over the experts near a, at a
    b = argmax of l without a       w_b = the same over the experts near b, without a

Expert e is near expert a where (l_a - l_e) / max(|l_e|, l_a) <= 2 jitter. The weights do not sum to one. In
training the choice is a sample, whose gradient the paper estimates; here it is what the trained model does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cutaway.shapes import Float, Int


def choose(
    logits: Float[Tensor, "b t e"], jitter: float
) -> tuple[Int[Tensor, "b t 2"], Float[Tensor, "b t 2"]]:
    """The two experts of each token, the better first, and their weights."""
    left, indices, weights = logits, [], []
    for _ in range(2):
        highest, index = left.max(dim=-1, keepdim=True)
        far = (highest - logits) / logits.abs().maximum(highest) > 2 * jitter
        near = left.masked_fill(far, -torch.inf)
        indices.append(index)
        weights.append(near.softmax(dim=-1).gather(-1, index))
        left = left.scatter(-1, index, -torch.inf)
    return torch.cat(indices, dim=-1), torch.cat(weights, dim=-1)
