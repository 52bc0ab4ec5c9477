"""The logit lens (nostalgebraist 2020; 2303.08112): the next token if the model stopped after each block.

The residual stream after a block goes through the final norm and the head, as if later blocks added nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.model.decoder import Decoder
from cutaway.shapes import Float, Int

ROWS = 256  # residuals scored at once: 256 rows of 50,000 logits are 50 MB


@dataclass(frozen=True)
class Lens:
    """The likeliest token after the embedding and after each block (``names``, n of them).

    ``ids`` and ``probabilities`` [n t]; ``final`` [n t]: the probability, there, of the final answer.
    """

    names: tuple[str, ...]
    ids: Int[Tensor, "n t"]
    probabilities: Float[Tensor, "n t"]
    final: Float[Tensor, "n t"]


def lens(
    model: Decoder, residuals: Mapping[str, Float[Tensor, "t d"]], vocabulary: int | None = None
) -> Lens:
    """The lens at every position, over ids below ``vocabulary``; the last residual gives the final answer."""
    rows = torch.stack(list(residuals.values()))
    last = torch.cat([_logits(model, part, vocabulary).argmax(-1) for part in rows[-1].split(ROWS)])
    answers = last.expand(rows.shape[:2]).flatten()
    ids, probabilities, final = [], [], []
    for part, answer in zip(rows.flatten(0, 1).split(ROWS), answers.split(ROWS), strict=True):
        chances = _logits(model, part, vocabulary).softmax(-1)
        best = chances.max(-1)
        ids.append(best.indices)
        probabilities.append(best.values)
        final.append(chances.gather(-1, answer[:, None])[:, 0])
    columns = (torch.cat(parts).view(rows.shape[:2]) for parts in (ids, probabilities, final))
    return Lens(tuple(residuals), *columns)


def divergences(
    models: tuple[Decoder, Decoder],
    residuals: tuple[Mapping[str, Float[Tensor, "t d"]], Mapping[str, Float[Tensor, "t d"]]],
    vocabulary: int | None = None,
) -> Float[Tensor, "n t"]:
    """The KL divergence, in nats, of the second model's lens from the first one's at every stage."""
    stages = []
    for pair in zip(*(each.values() for each in residuals), strict=True):
        rows = zip(*(residual.split(ROWS) for residual in pair), strict=True)
        parts = []
        for part in rows:
            p, q = (
                _logits(model, own, vocabulary).double().log_softmax(-1)
                for model, own in zip(models, part, strict=True)
            )
            parts.append((p.exp() * (p - q)).sum(-1))
        stages.append(torch.cat(parts))
    return torch.stack(stages).float()


@torch.no_grad()
def _logits(model: Decoder, rows: Float[Tensor, "n d"], vocabulary: int | None) -> Float[Tensor, "n v"]:
    return model.logits(rows[None])[0, :, :vocabulary].float()
