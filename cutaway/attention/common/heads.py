"""The config that all softmax attention over heads shares; ``softmax.py`` is its module. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from cutaway.attention.common.visibility import Causal, Visibility
from cutaway.bounds import Bounded, Count, Natural, Positive
from cutaway.building import Buildable
from cutaway.errors import UserError
from cutaway.layers.config import Norm
from cutaway.position import alibi, rope, t5

if TYPE_CHECKING:
    from cutaway.attention.common.mixer import LayerState


@dataclass(frozen=True)
class Temperature(Bounded):
    """Queries far into a text are multiplied by 1 + beta ln(1 + floor(position / original)) (Ministral 3).

    ``first`` is the number of the first position, which is 1 in Llama 4.
    """

    beta: Positive
    original: Count
    first: Natural = 0


@dataclass(frozen=True, kw_only=True)
class Heads(Buildable):
    """Query heads, the size of a head, and what is done to queries, keys and scores.

    Sizes: ``value_size`` is ``key_size`` when None.

    Queries and keys: ``position`` rotates both. ``qk_norm`` norms both before the rotation, or after it with
    ``qk_norm_after`` (Hunyuan). ``qk_norm_over`` chooses what one norm covers: each head with shared weights
    (Qwen 3, Gemma 3), each head with its own weights (Cohere's "each"), or all heads as one vector (OLMo 2).

    Scores: ``scale`` multiplies them (1/sqrt(key_size) when None), ``softcap`` bounds them (Gemma 2), and
    ``relative`` adds a bias that depends on the distance. ``sinks`` are learned scores, one a head, that
    take a share of attention and have no value (GPT-OSS).

    Values: ``value_norm`` norms each value, ``value_scale`` multiplies it (MiMo), and ``value_of_key`` uses
    the key before its norm as the value. ``kv_layer`` is the number of an earlier layer whose keys and
    values this one uses (Gemma 4).

    ``clip`` bounds the numbers of query, key and value (OLMo). ``bias`` is on query, key and value,
    ``out_bias`` on the output.
    """

    module = "cutaway.attention.common.softmax:SoftmaxAttention"
    reads: ClassVar[Literal["past", "all", "memory"]] = "past"
    maps: ClassVar[int] = 1  # of attention that make one output together

    heads: Count
    key_size: Count
    value_size: Count | None = None
    position: rope.Config | None = field(default=None, metadata={"variants": "cutaway.position"})
    relative: alibi.Config | t5.Config | None = field(default=None, metadata={"variants": "cutaway.position"})
    scale: Positive | None = None
    softcap: Positive | None = None
    qk_norm: Norm | None = None
    qk_norm_over: Literal["head", "each", "width"] = "head"
    qk_norm_after: bool = False
    temperature: Temperature | None = None
    clip: Positive | None = None
    sinks: bool = False
    bias: bool = False
    out_bias: bool = False
    value_norm: Norm | None = None
    value_of_key: bool = False
    kv_layer: Natural | None = None
    value_scale: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value_scale != 1 and self.reads == "memory":
            raise UserError("attention.value_scale is not for attention to an encoder's memory")
        if self.qk_norm and self.qk_norm_over == "each" and "bias" in self.qk_norm.weights(1):
            raise UserError("attention.qk_norm has a bias; norms with weights for each head have none")
        if self.value_norm and self.value_norm.weights(1):
            raise UserError("attention.value_norm has weights; values have none: set weight to false")
        if self.value_of_key and self.values != self.key_size:
            raise UserError("attention.value_of_key needs values of the size of keys")
        if self.position is not None and self.position.size > self.key_size:
            raise UserError(
                f"attention.position.size is {self.position.size}; it must be at most key_size "
                f"({self.key_size})"
            )

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

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        rows = {
            "query": self.heads * self.key_size,
            "key": self.groups * self.key_size,
            "value": self.groups * self.values,
        }
        for name, there in self.projected.items():
            if not there:
                del rows[name]
        out: dict[str, tuple[int, ...]] = {f"{name}.weight": (n, width) for name, n in rows.items()}
        out["out.weight"] = (width, self.heads * self.values)
        if self.bias:
            out |= {f"{name}.bias": (n,) for name, n in rows.items()}
        if self.out_bias:
            out["out.bias"] = (width,)
        if self.qk_norm:
            for name, size in self.normed.items():
                if name == "key_norm" and self.kv_layer is not None:
                    continue
                own = self.qk_norm.weights(size)
                if self.qk_norm_over == "each":
                    own = {"weight": (size // self.key_size, self.key_size)}
                out |= {f"{name}.{part}": shape for part, shape in own.items()}
        if self.relative is not None:
            out |= {f"relative.{name}": shape for name, shape in self.relative.weights(self.heads).items()}
        if self.sinks:
            out["sinks"] = (self.heads,)
        return out

    @property
    def normed(self) -> dict[str, int]:
        """The size of the vectors that the norms of queries and keys take."""
        if self.qk_norm_over == "head":
            return {"query_norm": self.key_size, "key_norm": self.key_size}
        return {"query_norm": self.heads * self.key_size, "key_norm": self.groups * self.key_size}

    @property
    def projected(self) -> dict[str, bool]:
        """Whether there is a matrix for keys, and one for values."""
        own = self.kv_layer is None
        return {"key": own, "value": own and not self.value_of_key}

    @property
    def entries(self) -> dict[str, tuple[int, int]]:
        """What the cache keeps of a token: the heads and the size of each entry, by name."""
        if self.kv_layer is not None:
            return {}
        return {"k": (self.groups, self.key_size), "v": (self.groups, self.values)}

    @property
    def held(self) -> tuple[int, int] | None:
        """How many of the last tokens and of the first the cache holds; None: all."""
        return None

    def state(self) -> LayerState:
        from cutaway.attention.state.caches import Elsewhere, Full, Ring

        if self.kv_layer is not None:
            return Elsewhere()
        return Full() if self.held is None else Ring(*self.held)

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one token in this layer, for numbers of ``entry`` bytes: g (k + v) each."""
        return sum(heads * size for heads, size in self.entries.values()) * entry
