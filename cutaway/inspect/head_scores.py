"""A head's role, by its attention on random tokens given twice (2209.11895).

In the repetition an induction head attends from each token to the one that followed its first occurrence;
only the repetition tells it where that is.
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.inspect.inputs import device, has_pattern
from cutaway.inspect.result import Result
from cutaway.inspect.trace import subject_of
from cutaway.model.decoder import Decoder
from cutaway.shapes import Float

LENGTH = 24  # random tokens before they repeat
TEXTS = 4


def induction_scores(
    model: Decoder, length: int = LENGTH, texts: int = TEXTS, seed: int = 0, vocabulary: int | None = None
) -> tuple[Float[Tensor, " h"], ...]:
    """For each layer, each head's mean attention weight on the token after the earlier occurrence of its own.

    Tokens are drawn from the ids below ``vocabulary`` (None: all). UserError for a model with a recurrent
    layer, which has no attention weights.
    """
    patterns = _patterns(model, length, texts, seed, vocabulary)
    return tuple(p[:, :, length:].diagonal(offset=1, dim1=-2, dim2=-1).mean((0, -1)) for p in patterns)


def previous_token_scores(
    model: Decoder, length: int = LENGTH, texts: int = TEXTS, seed: int = 0, vocabulary: int | None = None
) -> tuple[Float[Tensor, " h"], ...]:
    """For each layer, each head's mean attention weight on the token just before."""
    patterns = _patterns(model, length, texts, seed, vocabulary)
    return tuple(p.diagonal(offset=-1, dim1=-2, dim2=-1).mean((0, -1)) for p in patterns)


def head_scores(
    lm: Any,
    kind: Literal["induction", "previous"] = "induction",
    length: int = LENGTH,
    texts: int = TEXTS,
    seed: int = 0,
) -> Result:
    """The scores of one kind [layer head] of a loaded model or ``Subject``, under its edits."""
    subject = subject_of(lm)
    of = {"induction": induction_scores, "previous": previous_token_scores}
    if kind not in of:
        raise UserError(f"there is no score {kind!r:.40}: use {' or '.join(of)}")
    vocabulary = min(subject.model.config.vocab, len(subject.tokenizer))
    with subject.tracing([2 * length] * texts, ()):
        found = of[kind](subject.model, length, texts, seed, vocabulary)
    values = np.full((len(found), max(map(len, found))), np.nan)
    for row, scores in zip(values, found, strict=True):
        row[: len(scores)] = scores.cpu().numpy()
    axes = {"layer": range(len(found)), "head": range(values.shape[1])}
    return Result(values, axes, f"{kind} scores", {"tokens": length, "texts": texts})


@torch.no_grad()
def _patterns(
    model: Decoder, length: int, texts: int, seed: int, vocabulary: int | None
) -> list[Float[Tensor, "b h t t"]]:
    """Every layer's attention weights on ``texts`` rows of ``length`` random tokens, each given twice."""
    for i, block in enumerate(model.config.blocks):
        if not has_pattern(block.attention):
            raise UserError(f"layer {i} is recurrent: it has no attention weights")
    generator = torch.Generator().manual_seed(seed)
    once = torch.randint(vocabulary or model.config.vocab, (texts, length), generator=generator)
    ids = once.repeat(1, 2).to(device(model))
    pos = torch.arange(2 * length, device=ids.device).expand(texts, -1)
    with tracing(model, "*.pattern") as seen:
        model(ids, pos, last=True)
    return [seen[f"blocks.{i}.attention.pattern"] for i in range(len(model.blocks))]
