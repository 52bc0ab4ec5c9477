"""Role ids: each token's embedding says who wrote it, as the chat renderer knows it (ISE, 2410.09102).

    x  =  embed(ids) + role(ids)        role: the template's, the user's, or data

Delimiters are tokens before the data, which later tokens can talk about; a role is in every token, and no
text changes it, since it is the origin of the token's characters (``tokenizer/chat/provenance.py``). A model
has to be trained with it from the start.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from cutaway.hooks import tracing
from cutaway.model import config as conf
from cutaway.model.decoder import Decoder
from cutaway.shapes import Float, Int
from cutaway.tokenizer import Tokenizer
from cutaway.tokenizer.chat.rendering import Rendered

TEMPLATE, USER, DATA = range(3)
SOURCE = re.compile(r"messages\[(\d+)\]")


def roles(rendered: Rendered, ids: Sequence[int], tokenizer: Tokenizer, data: Collection[int]) -> list[int]:
    """The role of each id of a rendered conversation; ``data`` are the messages that only carry text.

    A token with any character of data is data, and so is one of unknown origin.
    """
    written = np.concatenate(
        [
            np.full(len(rendered.text[run.start : run.stop].encode()), _role(run.source, data), np.int64)
            for run in rendered.origins
        ]
    )
    starts = np.cumsum([0, *(len(tokenizer.token_bytes(id)) for id in ids)])
    if starts[-1] != len(written):
        raise ValueError("the tokens do not spell the rendered text")
    return [int(written[start:stop].max()) for start, stop in pairwise(starts)]


def _role(source: str, data: Collection[int]) -> int:
    if source == "template":
        return TEMPLATE
    found = SOURCE.match(source)
    return DATA if found is None or int(found[1]) in data else USER


class RoleDecoder(nn.Module):
    """A decoder that is given each token's role; without ``use`` it reads none, and is the plain decoder."""

    def __init__(self, config: conf.Decoder, use: bool = True) -> None:
        super().__init__()
        self.decoder = Decoder(config)
        self.role = nn.Embedding(3, config.width) if use else None

    def forward(self, ids: Int[Tensor, "b t"], roles: Int[Tensor, "b t"]) -> Float[Tensor, "b t v"]:
        """Logits at every position."""
        pos = torch.arange(ids.shape[1]).expand(ids.shape)
        if self.role is None:
            return self.decoder(ids, pos)
        added = self.role(roles)
        with tracing(self.decoder, edit={"embed": lambda value: value + added}):
            return self.decoder(ids, pos)
