"""Per-layer embeddings (Gemma 3n, Gemma 4): each block has a small embedding of each token of its own.

    e_n = (sqrt(p) E_n[token] + norm(W_n x / sqrt(d))) / sqrt(2)      x is the token's embedding, of d numbers
    x = x + norm(W_out (act(W_gate x) * e_n))                         at the end of block n

A table of p numbers a token and layer is read one row at a time, so that it may stay on a disk: it adds to
what a model knows, and little to what a token costs.
"""

from torch import Tensor, nn

from cutaway.hooks import tap
from cutaway.layers.config import Norm, PerLayer
from cutaway.layers.mlp import ACTIVATIONS
from cutaway.shapes import Float, Int


class PerLayerEmbedding(nn.Module):
    """The embeddings of all layers at once. Taps ``input`` [b t d], which the projection reads."""

    def __init__(self, config: PerLayer, layers: int, width: int, norm: Norm) -> None:
        super().__init__()
        self.size, self.rows, self.first_beyond = config.size, config.vocab, config.first_beyond
        self.embedding = nn.Embedding(config.vocab, layers * config.size)
        self.projection = nn.Linear(width, layers * config.size, bias=False)
        self.norm = norm.build(config.size)

    def forward(self, ids: Int[Tensor, "b t"], x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t n p"]:
        if self.first_beyond:
            ids = ids.masked_fill(ids >= self.rows, 0)
        own = self.embedding(ids).unflatten(-1, (-1, self.size)) * self.size**0.5
        projected = (self.projection(tap("input", x)) * x.shape[-1] ** -0.5).unflatten(-1, (-1, self.size))
        return (self.norm(projected) + own) * 2.0**-0.5


class PerLayerInput(nn.Module):
    """Adds a block's own embedding of each token.

    Taps ``input`` [b t d], which the gate reads, and ``hidden`` [b t p], which the output matrix does.
    """

    def __init__(self, size: int, width: int, activation: str, norm: Norm) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.gate = nn.Linear(width, size, bias=False)
        self.out = nn.Linear(size, width, bias=False)
        self.norm = norm.build(width)

    def forward(self, x: Float[Tensor, "b t d"], own: Float[Tensor, "b t p"]) -> Float[Tensor, "b t d"]:
        """The part that is added to x."""
        hidden = tap("hidden", self.activation(self.gate(tap("input", x))) * own)
        return self.norm(self.out(hidden))
