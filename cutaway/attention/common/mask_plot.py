"""A mechanism's attention mask as a matrix to draw, and in words what a mask cannot show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.attention import dsa, luong, short_conv
from cutaway.attention.common.visibility import Causal, Window


@dataclass(frozen=True)
class MaskPlot:
    """``mask`` [t][s], None where the past is one recurrent state; ``caption``: what it shows."""

    mask: list[list[bool]] | None
    caption: str


def draw(config: Any, length: int, seed: int = 0) -> MaskPlot:
    """The matrix of so many tokens; ``seed`` draws an example where what is seen depends on the text."""
    if getattr(config, "state_shape", ()):
        heads, rows, columns = config.state_shape
        return MaskPlot(
            None,
            "Every earlier token is seen, but only through a recurrent state: each head keeps one matrix "
            f"(here {heads} of {rows} × {columns}, a row for each number or feature of a key) and no mask.",
        )
    if config.reads == "memory":
        caption = "Rows are tokens of the decoder's text, columns those of the encoder's: all are seen."
        if isinstance(config, luong.Config) and config.window is not None:
            place = length * np.random.default_rng(seed).random((length, 1))  # of S sigmoid(...)
            seen = np.abs(np.arange(length)[None, :] - place) <= config.window
            caption = (
                "Rows are tokens of the decoder's text, columns those of the encoder's. An example: a query "
                f"predicts a position and attends to {config.window} tokens to either side of it, which "
                f"depends on the text; here positions are random (seed {seed})."
            )
            return MaskPlot(seen.tolist(), caption)
        return MaskPlot(np.ones((length, length), bool).tolist(), caption)
    at = np.arange(length)
    convolved = isinstance(config, short_conv.Config)  # its weights are the same for every text
    rule: Any = Causal() & Window(config.conv) if convolved else config.visibility  # here of numpy arrays
    seen = rule.sees(at[:, None], at[None, :])
    caption = ""
    if isinstance(config, dsa.Config):
        scores = np.where(seen, np.random.default_rng(seed).random((length, length)), -np.inf)
        seen = seen & (np.argsort(np.argsort(-scores)) < config.top_k)
        caption = (
            f"An example: which {config.top_k} tokens are read depends on the text, here the indexer's "
            f"scores are random (seed {seed}). "
        )
    pairs, causal = int(seen.sum()), length * (length + 1) // 2
    caption += f"{pairs:,} of {length:,}² pairs are seen; plain causal attention sees {causal:,}."
    return MaskPlot(seen.tolist(), caption)
