"""The short convolution: each channel is mixed with its own last few values (H3, 2212.14052).

    y[t] = b + sum_j w[j] x[t - size + 1 + j]        j = 0 .. size - 1, each channel alone, nothing after t

A recurrence adds tokens one by one and cannot compare neighbours; the convolution lets it see "B after A".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cutaway.shapes import Float, Int


class ShortConv(nn.Module):
    """Causal and depthwise. Padding (a position of -1) is skipped: the next token sees the last real one."""

    def __init__(self, channels: int, size: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, size).uniform_(-(size**-0.5), size**-0.5))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(
        self,
        x: Float[Tensor, "b t n"],
        pos: Int[Tensor, "b t"],
        documents: Int[Tensor, "b t"] | None,
        in_order: bool,
        tail: Float[Tensor, "b m n"] | None,
    ) -> tuple[Float[Tensor, "b t n"], Float[Tensor, "b m n"]]:
        """``tail``: the last size - 1 values before x, None at the beginning. Returns y and the tail after x.

        ``in_order`` promises that there is neither padding nor more than one document.
        """
        if in_order:
            line, y = self._convolved(x, None, tail)
            return y, line[:, x.shape[1] :]
        # Real tokens first, in their order, then padding; afterwards all return to their positions.
        order = (pos < 0).to(torch.uint8).argsort(dim=1, stable=True)
        documents = None if documents is None else documents.gather(1, order)
        line, y = self._convolved(_take(x, order), documents, tail)
        ends = (pos >= 0).sum(1, keepdim=True) + torch.arange(self.weight.shape[1] - 1, device=x.device)
        return _take(y, order.argsort(dim=1)), _take(line, ends)

    def _convolved(self, x: Tensor, documents: Tensor | None, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        """The input line [b m+t n], tail first, and y."""
        t, before = x.shape[1], self.weight.shape[1] - 1
        line = torch.cat((x.new_zeros(x.shape[0], before, x.shape[2]) if tail is None else tail, x), dim=1)
        y = line[:, before:] * self.weight[:, before]
        for j in range(before):
            seen = line[:, j : j + t]
            if documents is not None:
                own = documents == nn.functional.pad(documents, (before, 0))[:, j : j + t]
                seen = seen * own[..., None]
            y = y + seen * self.weight[:, j]
        return line, y if self.bias is None else y + self.bias


class Convs(nn.ModuleDict):
    """A short convolution of each part of a joined vector, with one tail for all."""

    def __init__(self, parts: dict[str, int], size: int) -> None:
        super().__init__({name: ShortConv(channels, size, bias=False) for name, channels in parts.items()})
        self.sizes = list(parts.values())

    def forward(
        self,
        x: Float[Tensor, "b t n"],
        pos: Int[Tensor, "b t"],
        documents: Int[Tensor, "b t"] | None,
        in_order: bool,
        tail: Float[Tensor, "b m n"] | None,
    ) -> tuple[Float[Tensor, "b t n"], Float[Tensor, "b m n"]]:
        """Like ``ShortConv``, part by part."""
        tails = [None] * len(self.sizes) if tail is None else tail.split(self.sizes, dim=-1)
        found = [
            conv(part, pos, documents, in_order, before)
            for conv, part, before in zip(self.values(), x.split(self.sizes, dim=-1), tails, strict=True)
        ]
        y, after = zip(*found, strict=True)
        return torch.cat(y, dim=-1), torch.cat(after, dim=-1)


def _take(x: Float[Tensor, "b s n"], index: Int[Tensor, "b t"]) -> Float[Tensor, "b t n"]:
    """The rows of x at these indices."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
