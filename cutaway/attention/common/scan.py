"""The elementwise linear recurrence of state space models, in two forms that compute the same.

    h = a h + x                  each number of the state alone: mamba, rg_lru

The *recurrent* form is that loop, token by token: the reference, and how one new token is read. The
*scanned* form reads a chunk at once: two neighbouring steps (a, x), (a', x') are one step (a' a, a' x + x'),
so that doubling the span of every step ends, after log2 steps, at all states of the chunk (Blelloch 1990).
Factors are multiplied and never divided: a may be 0, at the first token of a document, and nothing overflows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cutaway.attention.common.linear_recurrence import document_starts
from cutaway.attention.common.visibility import Positions
from cutaway.shapes import Float

CHUNK = 32  # tokens that are scanned at once


def masked(
    a: Float[Tensor, "b t ..."], x: Float[Tensor, "b t ..."], positions: Positions, part: slice
) -> tuple[Tensor, Tensor]:
    """Padding keeps the state as it is; the first token of a document forgets what came before.

    ``part``: the tokens of the text that a and x are of.
    """
    shape = (*a.shape[:2], *(1,) * (a.ndim - 2))
    real = (positions.pos[:, part] >= 0).view(shape)
    a, x = a.masked_fill(~real, 1.0), x * real
    if positions.documents is not None:
        a = a.masked_fill(document_starts(positions)[:, part].view(shape), 0.0)
    return a, x


def recurrent(a: Float[Tensor, "b t ..."], x: Float[Tensor, "b t ..."], h: Float[Tensor, "b ..."]) -> Tensor:
    """The state after each token [b t ...], token by token: the reference."""
    states = []
    for t in range(a.shape[1]):
        h = a[:, t] * h + x[:, t]
        states.append(h)
    return torch.stack(states, dim=1)


def scanned(a: Float[Tensor, "b t ..."], x: Float[Tensor, "b t ..."], h: Float[Tensor, "b ..."]) -> Tensor:
    """The same, all tokens at once by doubling."""
    step = 1
    while step < a.shape[1]:
        x = torch.cat((x[:, :step], torch.addcmul(x[:, step:], a[:, step:], x[:, :-step])), dim=1)
        a = torch.cat((a[:, :step], a[:, step:] * a[:, :-step]), dim=1)
        step *= 2
    return torch.addcmul(x, a, h[:, None])


def states(a: Float[Tensor, "b t ..."], x: Float[Tensor, "b t ..."], h: Float[Tensor, "b ..."]) -> Tensor:
    """The state after each token of a chunk [b t ...], by the form that is faster."""
    return (recurrent if a.shape[1] == 1 else scanned)(a, x, h)


def chunks(tokens: int) -> list[slice]:
    """The chunks of a text."""
    return [slice(start, start + CHUNK) for start in range(0, tokens, CHUNK)]
