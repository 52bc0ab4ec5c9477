"""Who sees whom, ready to be drawn: the mask of a mechanism's own visibility, and in words what a mask cannot
show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from cutaway.attention import dsa, luong
from cutaway.attention.parts.indexed import best
from cutaway.attention.parts.recurrent import Recurring
from cutaway.attention.parts.visibility import Places, mask


@dataclass(frozen=True)
class Picture:
    """``seen`` [t][s], None where everything earlier is seen through a memory; ``said``: what it shows."""

    seen: list[list[bool]] | None
    said: str


def draw(config: Any, length: int, seed: int = 0) -> Picture:
    """The picture of so many tokens; ``seed`` makes the example where what is seen depends on the text."""
    if isinstance(config, Recurring):
        heads, rows, columns = config.memory
        return Picture(
            None,
            "Every earlier token is seen, but only through a memory: each head folds what it read into one "
            f"matrix (here {heads} of {rows} × {columns}, a row for each number or feature of a key), so "
            "there is no matrix of who looks at whom.",
        )
    if config.reads == "memory":
        said = "Rows are tokens of the text that is written, columns those of the other text: all are seen."
        if isinstance(config, luong.Config) and config.window is not None:
            said += (
                f" Each query then predicts a place, and reads only {config.window} tokens to either side of "
                "it: which they are depends on the text."
            )
        return Picture(torch.ones(length, length, dtype=torch.bool).tolist(), said)
    here = Places(torch.arange(length)[None])
    seen = mask(config.visibility, here, here)[0]
    said = ""
    if isinstance(config, dsa.Config):
        chance = torch.Generator().manual_seed(seed)
        scores = torch.rand(1, length, length, generator=chance).masked_fill(~seen, -torch.inf)
        seen = seen & best(scores, config.top_k)[0]
        said = (
            f"An example: which {config.top_k} tokens are read depends on the text, here the indexer's "
            f"scores are random (seed {seed}). "
        )
    pairs, causal = int(seen.sum()), length * (length + 1) // 2
    said += f"{pairs:,} of {length:,}² pairs are seen; plain causal attention sees {causal:,}."
    return Picture(seen.tolist(), said)
