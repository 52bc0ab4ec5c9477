"""What a head is for, by where it looks on a text made to tell: random tokens, twice (2209.11895, "In-context
Learning and Induction Heads").

On the second pass a head that has learnt to continue what it saw before looks from each token to the one that
followed its first appearance; nothing but the repetition can tell it where that is.
"""

import torch
from torch import Tensor

from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.inspect.inputs import device, has_pattern
from cutaway.model.decoder import Decoder
from cutaway.shapes import Float

LENGTH = 24  # random tokens before they repeat
TEXTS = 4


def induction_scores(
    model: Decoder, length: int = LENGTH, texts: int = TEXTS, seed: int = 0
) -> tuple[Float[Tensor, " h"], ...]:
    """For each layer, each head's mean share (0 to 1) on the token after the earlier copy of the one it
    stands on. UserError where a layer reads through a memory and shares nothing out.
    """
    patterns = _patterns(model, length, texts, seed)
    return tuple(p[:, :, length:].diagonal(offset=1, dim1=-2, dim2=-1).mean((0, -1)) for p in patterns)


def previous_token_scores(
    model: Decoder, length: int = LENGTH, texts: int = TEXTS, seed: int = 0
) -> tuple[Float[Tensor, " h"], ...]:
    """For each layer, each head's mean share on the token just before."""
    return tuple(
        p.diagonal(offset=-1, dim1=-2, dim2=-1).mean((0, -1)) for p in _patterns(model, length, texts, seed)
    )


@torch.no_grad()
def _patterns(model: Decoder, length: int, texts: int, seed: int) -> list[Float[Tensor, "b h t t"]]:
    """Every layer's attention on ``texts`` rows of ``length`` random tokens, each row said twice."""
    for i, block in enumerate(model.config.blocks):
        if not has_pattern(block.attention):
            raise UserError(f"layer {i} reads the past through a memory: no head of it looks at a token")
    chance = torch.Generator().manual_seed(seed)
    once = torch.randint(model.config.vocab, (texts, length), generator=chance)
    ids = once.repeat(1, 2).to(device(model))
    pos = torch.arange(2 * length, device=ids.device).expand(texts, -1)
    with tracing(model, "*.pattern") as seen:
        model(ids, pos, last=True)
    return [seen[f"blocks.{i}.attention.pattern"] for i in range(len(model.blocks))]
