"""What every softmax attention over heads states about itself. Imports no torch; ``softmax.py`` is its equation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cutaway.attention.parts.visibility import Causal, Visibility
from cutaway.layers.config import Norm
from cutaway.position import rope

if TYPE_CHECKING:
    from torch import nn

    from cutaway.attention.parts.state import Full, Ring


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Query heads, the size of a head, and what is done to it on the way.

    ``value_size`` is ``key_size`` when None; ``scale`` multiplies scores, 1/sqrt(key_size) when None; ``qk_norm`` norms
    each head's query and key before they are turned (Qwen 3, Gemma 3); ``softcap`` bounds scores (Gemma 2);
    ``bias`` is on query, key and value, ``out_bias`` on the output.
    """

    heads: int
    key_size: int
    value_size: int | None = None
    position: rope.Config | None = field(default=None, metadata={"variants": "cutaway.position"})
    scale: float | None = None
    softcap: float | None = None
    qk_norm: Norm | None = None
    bias: bool = False
    out_bias: bool = False

    @property
    def groups(self) -> int:
        """How many key-value heads there are: as many as query heads, unless a mechanism says otherwise."""
        return self.heads

    @property
    def values(self) -> int:
        """The size of a value."""
        return self.key_size if self.value_size is None else self.value_size

    @property
    def visibility(self) -> Visibility:
        return Causal()

    def build(self, width: int) -> nn.Module:
        from cutaway.attention.parts.softmax import SoftmaxAttention

        return SoftmaxAttention(self, width)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        rows = {
            "query": self.heads * self.key_size,
            "key": self.groups * self.key_size,
            "value": self.groups * self.values,
        }
        out = {f"{name}.weight": (n, width) for name, n in rows.items()}
        out["out.weight"] = (width, self.heads * self.values)
        if self.bias:
            out |= {f"{name}.bias": (n,) for name, n in rows.items()}
        if self.out_bias:
            out["out.bias"] = (width,)
        if self.qk_norm:
            for name in ("query_norm", "key_norm"):
                out |= {f"{name}.{part}": shape for part, shape in self.qk_norm.weights(self.key_size).items()}
        return out

    def state(self) -> Full | Ring:
        from cutaway.attention.parts.state import Full

        return Full()

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one token in this layer, for numbers of ``entry`` bytes: g (k + v) each."""
        return self.groups * (self.key_size + self.values) * entry
