"""The logit lens (nostalgebraist 2020; 2303.08112 studies it): what the model would say if it stopped after
each block.

The residual stream after a block goes through the final norm and the head, as if the later blocks wrote
nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cutaway.model.decoder import Decoder
from cutaway.shapes import Float, Int

ROWS = 256  # streams scored at once: 256 rows of 50,000 logits are 50 MB


@dataclass(frozen=True)
class Lens:
    """The best guess after the embedding and after each block: ``names`` (n of them) say which, ``ids`` and
    ``probabilities`` [n t] what and how sure. ``final`` [n t]: the probability, there, of what is said in the
    end.
    """

    names: tuple[str, ...]
    ids: Int[Tensor, "n t"]
    probabilities: Float[Tensor, "n t"]
    final: Float[Tensor, "n t"]


def lens(model: Decoder, streams: Mapping[str, Float[Tensor, "t d"]]) -> Lens:
    """Each stream's guess at every position; the last stream is the one the model answered from."""
    rows = torch.stack(list(streams.values()))
    said = torch.cat([_logits(model, part).argmax(-1) for part in rows[-1].split(ROWS)])
    answers = said.expand(rows.shape[:2]).flatten()
    ids, probabilities, final = [], [], []
    for part, answer in zip(rows.flatten(0, 1).split(ROWS), answers.split(ROWS), strict=True):
        chances = _logits(model, part).softmax(-1)
        best = chances.max(-1)
        ids.append(best.indices)
        probabilities.append(best.values)
        final.append(chances.gather(-1, answer[:, None])[:, 0])
    shape = rows.shape[:2]
    return Lens(
        tuple(streams),
        torch.cat(ids).view(shape),
        torch.cat(probabilities).view(shape),
        torch.cat(final).view(shape),
    )


@torch.no_grad()
def _logits(model: Decoder, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
    return model.logits(rows[None])[0].float()
