"""Strided attention (Sparse Transformer, 1904.10509): the last ``stride`` tokens and every l-th before.

With a stride near sqrt(n) a token reads 2 sqrt(n) others, and any two meet within two layers. It suits what
has a period, such as the rows of an image; text is better served by ``fixed``. The paper gives each half to
heads of its own or merges them, as here.
"""

from dataclasses import dataclass

from cutaway.attention import gqa
from cutaway.attention.common.cost import Cost
from cutaway.attention.common.visibility import Causal, Stride, Visibility, Window
from cutaway.bounds import Count

COST = Cost(
    prefill="(min(n, stride) (n - min(n, stride) / 2) + max(n - stride, 0)² / (2 stride)) h (k + v)",
    memory="n (h + g) (k + v)",
    decode="(min(n, stride) + n / stride) h (k + v)",
    state="n g (k + v)",
)
USUAL = {"stride": 128}


@dataclass(frozen=True, kw_only=True)
class Config(gqa.Config):
    """``stride``: both the window and the step."""

    stride: Count

    @property
    def visibility(self) -> Visibility:
        return Causal() & (Window(self.stride) | Stride(self.stride))
