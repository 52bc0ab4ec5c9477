"""Embeddings of distances (DeBERTa, 2006.03654): a vector for each distance of two tokens, up to ``span``.

Farther ones share the last. With ``farthest`` near distances, up to half of the span, have a vector each, and
others share vectors by their logarithm, up to that distance (DeBERTa-v2). Attention projects them to keys and
queries (``attention/disentangled.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.bounds import Bounded, Count, Positive
from cutaway.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Config(Bounded):
    """``span`` distances to either side; a layer norm with ``norm_eps``, if any, precedes the reading."""

    span: Count
    farthest: Count | None = None
    norm_eps: Positive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        half = self.span // 2
        if self.farthest is not None and (half < 2 or self.farthest - 1 <= half):
            raise UserError(
                f"position.farthest is {self.farthest}; it must be at least 2 more than half of span "
                f"({self.span}), and that half 2 or more"
            )

    def build(self, width: int) -> nn.Module:
        from torch import Tensor, nn, randn

        config = self

        class Distances(nn.Module):
            """The vectors of all distances, the most negative first [2 span, width]."""

            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(randn(2 * config.span, width))
                eps = config.norm_eps
                self.norm = nn.Identity() if eps is None else nn.LayerNorm(width, eps)

            def forward(self) -> Tensor:
                return self.norm(self.weight)

        return Distances()

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        norm = {} if self.norm_eps is None else {"norm.weight": (width,), "norm.bias": (width,)}
        return {"weight": (2 * self.span, width)} | norm
