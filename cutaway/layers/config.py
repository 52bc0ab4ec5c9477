"""The configs of a norm, an MLP and a mixture of experts. Imports no torch; ``build`` makes the module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cutaway.bounds import Bounded, Count, Natural, NonNegative, Positive
from cutaway.building import Buildable
from cutaway.errors import UserError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Norm(Bounded):
    """Root-mean-square norm (1910.07467) or layer norm (1607.06450), with the epsilon inside the root.

    Without ``weight`` nothing is learned (OLMo); a layer norm may be without ``bias`` (Cohere).
    """

    kind: Literal["rms", "layer"] = "rms"
    eps: Positive = 1e-5
    weight: bool = True
    bias: bool = True

    def build(self, width: int) -> nn.Module:
        from cutaway.layers.norm import LayerNorm, RMSNorm

        return {"rms": RMSNorm, "layer": LayerNorm}[self.kind](width, self.eps, self.weights(width))

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        if not self.weight:
            return {}
        return {"weight": (width,)} | ({"bias": (width,)} if self.kind == "layer" and self.bias else {})


Activation = Literal["silu", "gelu", "gelu_tanh", "gelu_sigmoid", "relu", "relu2", "xielu"]


@dataclass(frozen=True)
class MLP(Buildable):
    """Two matrices around an activation, or three when gated (SwiGLU and its kin, 2002.05202).

    ``limit`` clamps the gate from above and ``up`` on both sides, and 1 is added to ``up`` (GPT-OSS).
    ``gate_scale`` multiplies the gate, ``out_scale`` the output (Falcon-H1). ``down_bias`` is one on the last
    matrix alone (GTE); ``hidden_norm`` is a norm of what that matrix reads (BitNet). With a ``sparsity`` so
    large a part of a token's gates is 0, were they normally distributed, and the others count by how far they
    are above that (Gemma 3n).
    """

    module = "cutaway.layers.mlp:MLP"

    hidden: Count
    activation: Activation = "silu"
    gated: bool = True
    bias: bool = False
    limit: Positive | None = None
    gate_scale: Positive = 1.0
    out_scale: Positive = 1.0
    down_bias: bool = False
    hidden_norm: Norm | None = None
    sparsity: NonNegative = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity and (not self.gated or self.sparsity >= 1):
            raise UserError(f"layers.sparsity is {self.sparsity}; it must be below 1, and the MLP gated")
        if self.limit is not None and not self.gated:
            raise UserError("layers: limit is for a gated MLP: leave it out, or set gated")

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        wide, narrow = ("gate", "up") if self.gated else ("up",), ("down",)
        matrices = dict.fromkeys(wide, (self.hidden, width)) | dict.fromkeys(narrow, (width, self.hidden))
        biased = matrices if self.bias else narrow if self.down_bias else ()
        biases = {f"{name}.bias": matrices[name][:1] for name in biased}
        if self.activation == "xielu":
            biases |= {"activation.alpha_p": (1,), "activation.alpha_n": (1,)}
            biases |= {"activation.beta": (), "activation.eps": ()}
        if self.hidden_norm is not None:
            own = self.hidden_norm.weights(self.hidden)
            biases |= {f"hidden_norm.{name}": shape for name, shape in own.items()}
        return {f"{name}.weight": shape for name, shape in matrices.items()} | biases


@dataclass(frozen=True)
class PerLayer(Bounded):
    """Embeddings of ``size`` numbers that each block has of each token (layers/per_layer.py).

    With ``first_beyond`` tokens that the table has no row for read its first (Gemma 3n).
    """

    size: Count
    vocab: Count
    first_beyond: bool = False

    def weights(self, layers: int, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        rows = layers * self.size
        matrices = {"embedding": (self.vocab, rows), "projection": (rows, width), "norm": (self.size,)}
        return {f"{name}.weight": shape for name, shape in matrices.items()}


@dataclass(frozen=True)
class Router(Bounded):
    """How experts are scored, chosen and weighed, where it is not Mixtral's way (layers/moe.py).

    Scores: ``bias`` is added to the router's logits (GPT-OSS), then ``score`` maps them to 0..1. A
    "sparsemixer" weighs each of two experts among those whose logits are within ``jitter`` of it
    (layers/sparsemixer.py).

    Choice: experts are taken from the ``top_groups`` best of ``groups`` equal groups. A group's score is that
    of its best expert, or with ``group_of_two`` the sum of its best two. ``choice_bias`` is added to the
    scores for the choice alone (DeepSeek-V3), or with ``by_logits`` to the logits (Kolibri).

    Weights: ``scale`` multiplies them. With ``on_input`` a weight multiplies its expert's input in place of
    its output (Llama 4).
    """

    score: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    bias: bool = False
    choice_bias: bool = False
    groups: Count = 1
    top_groups: Count = 1
    group_of_two: bool = False
    scale: Positive = 1.0
    on_input: bool = False
    by_logits: bool = False
    jitter: NonNegative = 0.0


OWN_NORMS = ("router_norm", "experts_norm", "experts_post_norm", "shared_norm", "shared_post_norm")


@dataclass(frozen=True)
class MoE(Buildable):
    """``experts`` MLPs of ``hidden`` neurons; the router sends a token to ``top_k`` (layers/moe.py).

    ``normalised``: the weights of a token's experts sum to 1 (Mixtral), or they are the router's
    probabilities among all experts (Qwen2-MoE). ``shared`` neurons, if any, form one more MLP that every
    token passes (DeepSeekMoE), times a gate of its own if ``shared_gate`` (Qwen2-MoE). ``bias`` and ``limit``
    are the experts'. With a ``latent`` experts read and output vectors of that size, between two matrices
    (Nemotron 3). With ``norms`` the router, the experts and the shared MLP each norm x themselves, both MLPs
    norm their outputs too, and each expert's weight has a learned factor (Gemma 4). ``out_scale`` multiplies
    the sum of all outputs.
    """

    module = "cutaway.layers.moe:MoE"

    experts: Count
    top_k: Count
    hidden: Count
    activation: Activation = "silu"
    gated: bool = True
    normalised: bool = True
    shared: Natural = 0
    shared_gate: bool = False
    router: Router = Router()
    bias: bool = False
    limit: Positive | None = None
    latent: Count | None = None
    norms: Norm | None = None
    out_scale: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norms and not self.shared:
            raise UserError("layers.norms are of experts beside a shared one: set shared to its hidden size")
        if self.experts % self.router.groups or self.router.top_groups > self.router.groups:
            raise UserError(
                f"layers.router.groups is {self.router.groups}; it must divide experts ({self.experts}), and "
                f"be at least top_groups ({self.router.top_groups})"
            )
        open_ = self.router.top_groups * (self.experts // self.router.groups)
        if self.router.groups > 1 and self.top_k > open_:
            raise UserError(
                f"layers.top_k is {self.top_k}, but the best groups have {open_} experts: "
                "lower top_k, or raise top_groups"
            )
        if self.router.group_of_two and 1 < self.router.groups == self.experts:
            raise UserError("layers.router.group_of_two needs groups of two experts or more")
        if self.router.score == "sparsemixer" and (self.top_k != 2 or self.router.choice_bias):
            raise UserError("layers.router.score: a sparsemixer chooses two experts, by their logits alone")
        if self.top_k > self.experts:
            raise UserError(f"layers.top_k is {self.top_k}; it must be at most experts ({self.experts})")
        if self.shared_gate and not self.shared:
            raise UserError("layers: shared_gate needs a shared expert: set shared to its hidden size")

    @property
    def expert(self) -> MLP:
        """The config of one expert."""
        return MLP(self.hidden, self.activation, self.gated, self.bias, self.limit)

    @property
    def common(self) -> MLP | None:
        """The config of the shared expert, if there is one."""
        return MLP(self.shared, self.activation, self.gated, self.bias, self.limit) if self.shared else None

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        one = self.expert.weights(self.latent or width)
        out: dict[str, tuple[int, ...]] = {"router.weight": (self.experts, width)}
        if self.router.bias:
            out["router.bias"] = (self.experts,)
        if self.router.choice_bias:
            out["choice_bias"] = (self.experts,)
        out |= {f"experts.{e}.{name}": shape for e in range(self.experts) for name, shape in one.items()}
        if self.common is not None:
            out |= {f"shared.{name}": shape for name, shape in self.common.weights(width).items()}
        if self.latent is not None:
            out |= {"latent_down.weight": (self.latent, width), "latent_up.weight": (width, self.latent)}
        if self.norms is not None:
            out["expert_scale"] = (self.experts,)
            for name in OWN_NORMS:
                out |= {f"{name}.{part}": shape for part, shape in self.norms.weights(width).items()}
        return out | ({"shared_gate.weight": (1, width)} if self.shared_gate else {})
