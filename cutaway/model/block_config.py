"""The config of one block: a mixer, an MLP, their norms, and what else is in one layer. Imports no torch."""

from dataclasses import dataclass, field
from typing import Any, Literal

from cutaway.attention.common.mixer import LayerState, Mixer, Shapes, linear, under
from cutaway.bounds import Bounded, Count, Natural, Positive
from cutaway.building import Buildable
from cutaway.errors import UserError
from cutaway.layers.config import MLP, Activation, MoE, Norm
from cutaway.model.kinds import kind_of

SHARING = ("mha", "gqa", "mqa", "local")  # attention that may read the keys and values of an earlier layer
# attention that may read the keys and values of an earlier layer


@dataclass(frozen=True)
class Beside(Bounded):
    """A second mixer of a block (Falcon-H1).

    Both read the normed x, times the two numbers of ``inputs``, the attention's first; their outputs, times
    those of ``outputs``, are added.
    """

    mixer: Any = field(metadata={"variants": "cutaway.attention"})
    inputs: tuple[Positive, ...] = (1.0, 1.0)
    outputs: tuple[Positive, ...] = (1.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.inputs) != 2 or len(self.outputs) != 2:
            raise UserError("model: beside.inputs and beside.outputs are two numbers each")
        if not isinstance(self.mixer, Mixer) or self.mixer.position is not None:
            raise UserError("model: beside.mixer must be a mechanism without positions")


@dataclass(frozen=True)
class Shared(Buildable):
    """A transformer before a block's mixer, whose weights several blocks share (model/shared.py).

    ``attention`` reads vectors of twice the width; ``hidden`` neurons are its gated MLP's. ``source`` is the
    number of the block whose weights it reads, None where they are its own. ``rank``: of this block's own
    matrix beside those of gate and up, ``attention_rank`` beside query, key and value.
    """

    module = "cutaway.model.shared:SharedTransformer"

    attention: Any = field(metadata={"variants": "cutaway.attention"})
    hidden: Count
    activation: Activation = "gelu"
    norm: Norm = Norm()
    rank: Count | None = None
    attention_rank: Count | None = None
    source: Natural | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if kind_of(self.attention) not in SHARING or self.attention.kv_layer is not None:
            raise UserError(f"model: shared.attention should be {', '.join(SHARING)}, with keys of its own")
        if self.attention.bias or self.attention.out_bias or self.activation == "xielu":
            raise UserError("model: shared has no biases and no learned activation")

    def weights(self, width: int) -> Shapes:
        """The shape of each weight by its name: of blocks that borrow, their low-rank matrices and W_out."""
        of, matrices = self.attention, ("query.weight", "key.weight", "value.weight", "out.weight")
        attention = {name: shape for name, shape in of.weights(2 * width).items() if name not in matrices}
        shapes = under("attention", attention) | linear("out", width, width)
        values = of.heads * of.values
        projections = [
            ("attention.query", of.heads * of.key_size, 2 * width, self.attention_rank),
            ("attention.key", of.groups * of.key_size, 2 * width, self.attention_rank),
            ("attention.value", of.groups * of.values, 2 * width, self.attention_rank),
            ("attention.out", width, values, None),
            ("gate_up", 2 * self.hidden, width, self.rank),
            ("down", width, self.hidden, None),
        ]
        for name, rows, columns, rank in projections:
            if self.source is None:
                shapes |= linear(f"{name}.shared", rows, columns)
            if rank is not None:
                shapes |= linear(f"{name}.down", rank, columns) | linear(f"{name}.up", rows, rank)
        if self.source is None:
            shapes |= under("attention_norm", self.norm.weights(2 * width))
            shapes |= under("mlp_norm", self.norm.weights(width))
        return shapes


@dataclass(frozen=True)
class Block(Bounded):
    """One layer: x += attention(norm(x)), then x += mlp(norm(x)).

    Norms: ``post_norm`` also norms the outputs of attention and MLP before they are added (Gemma); without
    ``pre_norm`` the inputs are not normed (OLMo 2). Without ``attention_normed`` attention reads x as it is.

    Order: in ``parallel`` the MLP reads the same x as attention, through attention's norm ("shared", Cohere)
    or its own ("own", GPT-NeoX). Without ``mlp`` the block is its first half (Mamba 2); ``beside`` is another
    mixer in that half. ``cross`` attends to an encoder's memory between the two halves (1706.03762); there
    ``pre_norm`` false means that each norm follows a sum: x = norm(x + ...).

    Additions: ``residual`` multiplies both additions (Granite). ``per_layer`` is the width of an embedding
    that each token has for this block, added at its end (layers/per_layer.py); if ``scaled``, one learned
    number then multiplies the output (Gemma 4). ``shared`` is a transformer that several blocks share, whose
    output the mixer reads too (Zamba 2). With ``streams`` the block computes the first of so many residual
    streams and corrects the others; ``laurel`` is the rank of a matrix beside attention (Gemma 3n,
    layers/altup.py).
    """

    attention: Any = field(metadata={"variants": "cutaway.attention"})
    mlp: MLP | MoE | None
    norm: Norm = Norm()
    post_norm: bool = False
    pre_norm: bool = True
    parallel: Literal["shared", "own"] | None = None
    residual: Positive = 1.0
    per_layer: Count | None = None
    scaled: bool = False
    beside: Beside | None = None
    shared: Shared | None = None
    streams: Count | None = None
    laurel: Count | None = None
    attention_normed: bool = True
    cross: Any = field(default=None, metadata={"variants": "cutaway.attention"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cross is not None:
            self._check_cross()
        elif not (self.pre_norm or self.post_norm) or (self.parallel and not self.pre_norm):
            raise UserError("model: a block without pre_norm needs post_norm, and cannot be parallel")
        if self.mlp is None and (self.parallel or self.per_layer):
            raise UserError("model: a block without mlp cannot be parallel, nor have per_layer")
        if self.shared and (self.attention.position is not None or self.beside or self.mlp):
            raise UserError("model: a block with shared has a mixer without positions alone")
        if self.streams and (not self.per_layer or self.parallel or self.scaled):
            raise UserError("model: streams need per_layer, and a block that is neither parallel nor scaled")
        if self.laurel and not (self.pre_norm and self.attention_normed):
            raise UserError("model: laurel reads what attention does, through a norm: set pre_norm")
        if not isinstance(self.attention, Mixer) or self.attention.reads == "memory":
            raise UserError(
                f"model: a block cannot have {kind_of(self.attention)} attention: it reads an encoder's "
                "memory"
            )

    def _check_cross(self) -> None:
        """UserError for what a block that reads a memory does not have."""
        if not isinstance(self.cross, Mixer) or self.cross.reads != "memory":
            raise UserError(
                f"model: cross is {kind_of(self.cross)} attention, which reads no memory: use kind cross"
            )
        odd = self.parallel or self.residual != 1 or self.beside or self.per_layer
        odd = odd or (self.post_norm and not self.pre_norm)
        if odd or self.scaled or not self.attention_normed or not isinstance(self.mlp, MLP):
            raise UserError("model: a block with cross has a dense MLP, three norms and nothing else")

    @property
    def norms(self) -> tuple[str, ...]:
        """The names of the norms that there are."""
        if self.cross is not None:
            after = ("attention_post_norm", "cross_post_norm", "mlp_post_norm") if self.post_norm else ()
            return ("attention_norm", "cross_norm", "mlp_norm", *after)
        before = ("attention_norm",) if self.parallel == "shared" else ("attention_norm", "mlp_norm")
        before = before if self.attention_normed else before[1:]
        if isinstance(self.mlp, MoE) and self.mlp.norms:  # which norm what they read by themselves
            before = tuple(name for name in before if name != "mlp_norm")
        after = ("attention_post_norm", "mlp_post_norm") if self.post_norm else ()
        names = (*(before if self.pre_norm else ()), *after)
        return names if self.mlp else tuple(name for name in names if not name.startswith("mlp"))

    @property
    def position(self) -> Any:
        """The positions of its attention, or of that which it shares."""
        return self.shared.attention.position if self.shared else self.attention.position

    def state(self) -> LayerState:
        """An empty state of its mixer, or of both, or of its mixer and its cross-attention."""
        from cutaway.attention.state.caches import Both

        own, second = self.attention.state(), self.cross or (self.beside and self.beside.mixer)
        second = second or (self.shared and self.shared.attention)
        return Both(own, second.state()) if second else own

    def bytes_per_token(self, entry: int) -> int:
        """Cache bytes of one more token of its own text, for numbers of ``entry`` bytes."""
        return sum(mixer.bytes_per_token(entry) for mixer in self.own_mixers)

    @property
    def own_mixers(self) -> tuple[Any, ...]:
        """What keeps something of the block's own text: its mixer, and one beside it or a shared layer's."""
        second = self.shared.attention if self.shared else self.beside.mixer if self.beside else None
        return (self.attention,) if second is None else (self.attention, second)

    def weights(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shape of each weight by its name."""
        parts = {"attention": self.attention.weights(width)}
        parts |= {"beside": self.beside.mixer.weights(width)} if self.beside else {}
        parts |= {"shared": self.shared.weights(width)} if self.shared else {}
        parts |= {"cross": self.cross.weights(width)} if self.cross else {}
        parts |= {"mlp": self.mlp.weights(width)} if self.mlp else {}
        parts |= {name: self.norm.weights(width) for name in self.norms}
        if self.per_layer is not None:
            norm = {f"norm.{name}": shape for name, shape in self.norm.weights(width).items()}
            matrices = {"gate.weight": (self.per_layer, width), "out.weight": (width, self.per_layer)}
            parts["per_layer"] = matrices | norm
        norm = self.norm.weights(width)
        if self.laurel is not None:
            parts["laurel"] = {"down.weight": (self.laurel, width), "up.weight": (width, self.laurel)}
            parts["laurel"] |= {f"norm.{name}": shape for name, shape in norm.items()}
        if (p := self.streams) is not None:
            matrices = {"router.weight": (p, width), "predict.weight": (p * p, p), "correct.weight": (p, p)}
            router_norm = {f"router_norm.{name}": shape for name, shape in norm.items()}
            parts["altup"] = {**matrices, **router_norm, "scale": (width,)}
        out = {f"{part}.{name}": shape for part, inner in parts.items() for name, shape in inner.items()}
        return out | ({"scale": (1,)} if self.scaled else {})
