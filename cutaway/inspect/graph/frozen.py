"""One text's forward pass, its attention weights, gates and norms' sizes frozen: linear but for its MLPs.

With these frozen every layer reads the residual stream by a matrix, so what a part reads is a sum over what
earlier parts wrote. ``FrozenLayer`` has these matrices of one layer: forwards for values, and transposed
(``back``) for directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.graph import mixture
from cutaway.inspect.inputs import has_gate, neuron_names
from cutaway.inspect.instrumented import Instrumented, Values
from cutaway.inspect.neurons import expert_outputs, of_experts
from cutaway.layers.config import MoE, Norm
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of

LATENT = ("mla", "dsa")
KINDS = ("mha", "gqa", "mqa", "local", "chunked", "streaming", "gated", "gated_local", *LATENT)


@dataclass(frozen=True)
class FrozenNorm:
    """A norm with its size as it was: ``inverse`` [t 1], its weight and bias [d], if any."""

    inverse: np.ndarray
    weight: np.ndarray | None
    bias: np.ndarray | None
    centred: bool

    @classmethod
    def of(cls, engine: Instrumented, path: str, of: Norm | None, x: np.ndarray) -> FrozenNorm:
        """The norm of rows x [t d]; without a norm the identity."""
        if of is None:
            return cls(np.ones((len(x), 1), np.float32), None, None, False)
        centred = of.kind == "layer"
        wide = x.astype(np.float64)
        wide = wide - wide.mean(-1, keepdims=True) if centred else wide
        inverse = 1 / np.sqrt(np.square(wide).mean(-1, keepdims=True) + of.eps)
        there = of.weights(x.shape[-1])
        weight, bias = (engine.weight(f"{path}.{n}") if n in there else None for n in ("weight", "bias"))
        return cls(inverse.astype(np.float32), weight, bias, centred)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Rows [t d] as the norm gives them."""
        y = self.linear(x)
        return y if self.bias is None else y + self.bias

    def linear(self, x: np.ndarray) -> np.ndarray:
        """Rows [... t d] without the norm's bias."""
        x = x - x.mean(-1, keepdims=True) if self.centred else x
        x = x * self.inverse
        return x if self.weight is None else x * self.weight

    def back(self, u: np.ndarray) -> np.ndarray:
        """Directions [... t d] of what the norm gives, as directions of what it reads."""
        return self.unsized(u) * self.inverse

    def back_at(self, u: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Directions [n d], each at a token of its own, likewise."""
        return self.unsized(u) * self.inverse[at]

    def unsized(self, u: np.ndarray) -> np.ndarray:
        """``back`` without the size, which is a number a token: directions [... d] of any token."""
        u = u if self.weight is None else u * self.weight
        return u - u.mean(-1, keepdims=True) if self.centred else u


class FrozenLayer:
    """The parts of layer ``i`` as linear maps of the residual stream, and what they wrote."""

    def __init__(self, engine: Instrumented, seen: Values, i: int) -> None:
        self.engine, self.seen, self.i = engine, seen, i
        self.block: Block = engine.config.blocks[i]
        self.of: Any = self.block.attention
        self.path = f"blocks.{i}"
        self.stream = seen[f"blocks.{i - 1}.out"] if i else seen["embed"]
        self.middle = seen[f"{self.path}.middle"]
        self.pattern = seen[f"{self.path}.attention.pattern"]  # [h t s]

    @cached_property
    def _there(self) -> dict[str, tuple[int, ...]]:
        return self.block.weights(self.engine.config.width)

    def weight(self, name: str) -> np.ndarray | None:
        """A weight of the layer; None where there is none."""
        return self.engine.weight(f"{self.path}.{name}") if name in self._there else None

    def _norm(self, name: str, x: np.ndarray) -> FrozenNorm:
        of = self.block.norm if name in self.block.norms else None
        return FrozenNorm.of(self.engine, f"{self.path}.{name}", of, x)

    @cached_property
    def attention_norm(self) -> FrozenNorm:
        return self._norm("attention_norm", self.stream)

    @cached_property
    def attention_after(self) -> FrozenNorm:
        return self._norm("attention_post_norm", self.seen[f"{self.path}.attention.out"])

    @cached_property
    def mlp_norm(self) -> FrozenNorm:
        """The norm of what the MLP reads: with a "shared" one, attention's."""
        if self.block.parallel == "shared":
            return self.attention_norm
        return self._norm("mlp_norm", self.stream if self.block.parallel else self.middle)

    @cached_property
    def mlp_after(self) -> FrozenNorm:
        return self._norm("mlp_post_norm", self.seen[self.mlp_site] * self.mlp_scale)

    @cached_property
    def groups(self) -> int:
        """How many heads have values of their own."""
        return self.of.heads if self.latent else self.of.groups

    @cached_property
    def values(self) -> np.ndarray:
        """W_v by key-value head [g v d], or of latent attention by the latent [h v c]."""
        name = "value_up" if self.latent else "value"
        weight = self.engine.weight(f"{self.path}.attention.{name}.weight")
        scale = np.float32(getattr(self.of, "value_scale", 1.0))
        return weight.reshape(self.groups, -1, weight.shape[-1]) * scale

    @cached_property
    def latent(self) -> tuple[FrozenNorm, np.ndarray] | None:
        """Latent attention's frozen norm of the latent, and the matrix [c d] that makes the latent."""
        if kind_of(self.of) not in LATENT:
            return None
        path = f"{self.path}.attention"
        down = self.engine.weight(f"{path}.down.weight")[: self.of.latent]
        read = self.attention_norm.forward(self.stream) @ down.T
        return FrozenNorm.of(self.engine, f"{path}.latent_norm", self.of.norm, read), down

    @cached_property
    def key_sizes(self) -> np.ndarray:
        """float32 [s 1]: the sizes of the norms on the way to a key's value."""
        return self.attention_norm.inverse * (self.latent[0].inverse if self.latent else np.float32(1))

    @cached_property
    def outputs(self) -> np.ndarray:
        """W_o by head [h v d], with a residual factor."""
        weight = self.engine.weight(f"{self.path}.attention.out.weight")
        own = weight.T.reshape(self.of.heads, -1, len(weight))
        return own * np.float32(self.block.residual)

    @cached_property
    def gate(self) -> np.ndarray | None:
        """[h t v]: what multiplies each head's z, where attention is gated."""
        if not has_gate(self.of):
            return None
        gate = self.seen[f"{self.path}.attention.gate"]
        return gate.reshape(len(gate), self.of.heads, -1).swapaxes(0, 1)

    @cached_property
    def heads(self) -> np.ndarray:
        """float32 [h t d]: what each head adds to the residual stream."""
        z = self.seen[f"{self.path}.attention.z"]
        return self.attention_after.linear((z if self.gate is None else z * self.gate) @ self.outputs)

    @cached_property
    def attention_constant(self) -> np.ndarray:
        """float32 [t d]: what attention adds whatever it reads: biases of its output and of a norm after."""
        bias = self.weight("attention.out.bias")
        rows = np.zeros_like(self.stream) if bias is None else np.broadcast_to(bias, self.stream.shape)
        return self.attention_after.forward(rows) * np.float32(self.block.residual)

    def head_reads(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What heads read of a key's residual stream, by directions u [h t d] of what each wrote: float32
        [h t d], but for weight and norm's size of the key; and the constant [h t] that a key adds besides.
        """
        z = np.einsum("htd,hvd->htv", self.attention_after.back(u), self.outputs)
        z = z if self.gate is None else z * self.gate
        group = np.arange(self.of.heads) // (self.of.heads // self.groups)
        read = np.einsum("htv,hvd->htd", z, self.values[group])
        constant = np.zeros(z.shape[:2])
        if (bias := self.weight("attention.value.bias")) is not None:
            own = bias.reshape(self.groups, -1)[group] * np.float32(self.of.value_scale)
            constant = np.einsum("htv,hv->ht", z, own)
        if self.latent:
            norm, down = self.latent
            constant = constant if norm.bias is None else constant + read @ norm.bias
            read = norm.unsized(read) @ down
        if self.attention_norm.bias is not None:
            constant = constant + read @ self.attention_norm.bias
        return self.attention_norm.unsized(read), constant

    def attention_back(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Directions [n t d] after attention, as directions before it by all heads; and constants [n]."""
        size = np.float32
        z = np.einsum("ntd,hvd->nhtv", self.attention_after.back(u), self.outputs, optimize=True)
        z = z if self.gate is None else z * self.gate
        z = np.matmul(self.pattern.swapaxes(-1, -2)[None], z)  # [n h s v]
        z = z.reshape(len(u), self.groups, -1, *z.shape[2:]).sum(2)  # [n g s v]
        read = np.einsum("ngsv,gvd->nsd", z, self.values, optimize=True).astype(size)
        constant = np.zeros(len(u))
        if (bias := self.weight("attention.value.bias")) is not None:
            own = bias.reshape(self.groups, -1) * size(self.of.value_scale)
            constant = np.einsum("ngsv,gv->n", z, own, optimize=True).astype(np.float64)
        if self.latent:
            norm, down = self.latent
            constant = constant if norm.bias is None else constant + (read @ norm.bias).sum(-1)
            read = norm.back(read) @ down
        if self.attention_norm.bias is not None:
            constant = constant + (read @ self.attention_norm.bias).sum(-1)
        return self.attention_norm.back(read), constant

    # The MLP: its neurons' activations as sums over what it reads

    @cached_property
    def mixture(self) -> MoE | None:
        """The MLP, if it is a mixture of experts."""
        return self.block.mlp if isinstance(self.block.mlp, MoE) else None

    @cached_property
    def mlp_site(self) -> str:
        """The activation that the MLP's neurons add up to."""
        return f"{self.path}.mlp.{'out' if self.mixture else 'down'}"

    @cached_property
    def mlp_scale(self) -> np.float32:
        """The factor of that activation."""
        mlp: Any = self.block.mlp
        return np.float32(1 if self.mixture else mlp.out_scale)

    @cached_property
    def hidden(self) -> np.ndarray:
        """float32 [t f]: each neuron's activation; in a mixture times its expert's weight."""
        path = f"{self.path}.mlp"
        return of_experts(self.seen, self.mixture, path) if self.mixture else self.seen[f"{path}.hidden"]

    @cached_property
    def mlp_input(self) -> np.ndarray:
        """float32 [t d]: what the MLP reads."""
        return self.mlp_norm.forward(self.stream if self.block.parallel else self.middle)

    @cached_property
    def outer(self) -> np.ndarray:
        """What each neuron adds to ``mlp_site``, for an activation of 1 [f d]."""
        path = f"{self.path}.mlp"
        if self.mixture:
            return expert_outputs(self.engine, self.mixture, path).T * np.float32(self.mixture.out_scale)
        return self.engine.weight(f"{path}.down.weight").T

    @cached_property
    def down(self) -> np.ndarray:
        """The same with the factors after it."""
        return self.outer * (self.mlp_scale * np.float32(self.block.residual))

    @cached_property
    def mlp_constant(self) -> np.ndarray:
        """float32 [t d]: what the MLP adds whatever its neurons are."""
        path, bias = f"{self.path}.mlp", self.weight("mlp.down.bias")
        if self.mixture:
            bias = mixture.constant(self.engine, self.seen, path, self.mixture)
        rows = np.zeros_like(self.middle) if bias is None else np.broadcast_to(bias, self.middle.shape)
        return self.mlp_after.forward(rows * self.mlp_scale) * np.float32(self.block.residual)

    @cached_property
    def mlp(self) -> np.ndarray:
        """float32 [t d]: what the MLP adds to the residual stream."""
        return self.mlp_after.linear(self.hidden @ self.down) + self.mlp_constant

    def written(self, at: Sequence[int], neurons: Sequence[int]) -> np.ndarray:
        """float32 [n d]: what single neurons at positions add to the residual stream."""
        rows = self.hidden[at, neurons][:, None] * self.down[neurons]
        rows = rows - rows.mean(-1, keepdims=True) if self.mlp_after.centred else rows
        rows = rows * self.mlp_after.inverse[at]
        return rows if self.mlp_after.weight is None else rows * self.mlp_after.weight

    @cached_property
    def _inner(self) -> list[tuple[np.ndarray, np.ndarray | None, np.ndarray]]:
        """For gate and up each: matrix [f d], bias [f], and the ratio of activation to input [t f].

        An activation is a product of what its gate and its ``up`` become. Each is given half of it, the other
        frozen, and is taken as its ratio to what it read: so the sum over what is read is the activation.
        """
        mlp: Any = self.block.mlp
        names, found = ("gate", "up") if mlp.gated else ("up",), []
        for name in names:
            path = f"{self.path}.mlp"
            if self.mixture:
                weight, bias = mixture.inputs(self.engine, path, self.mixture, name)
            else:
                weight, bias = self.engine.weight(f"{path}.{name}.weight"), self.weight(f"mlp.{name}.bias")
            x = self.mlp_input @ weight.T + (0 if bias is None else bias)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.where(x == 0, 0, self.hidden / x) / np.float32(len(names))
            found.append((weight, bias, ratio.astype(np.float32)))
        return found

    def neurons_read(self, at: np.ndarray, by: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What neurons at positions ``at`` [n] read of the residual stream, weighed ``by`` [n f]: directions
        [n d] of it, and the constants [n] that biases add.
        """
        direction, constant = np.zeros((len(at), self.middle.shape[-1]), np.float32), np.zeros(len(at))
        for weight, bias, ratio in self._inner:
            own = by * ratio[at]
            direction = direction + own @ weight
            constant = constant if bias is None else constant + own @ bias
        return self._mlp_reads(at, direction, constant)

    def neuron_reads(self, at: np.ndarray, neurons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What single neurons read, likewise."""
        direction, constant = np.zeros((len(at), self.middle.shape[-1]), np.float32), np.zeros(len(at))
        for weight, bias, ratio in self._inner:
            own = ratio[at, neurons]
            direction = direction + own[:, None] * weight[neurons]
            constant = constant if bias is None else constant + own * bias[neurons]
        return self._mlp_reads(at, direction, constant)

    def _mlp_reads(
        self, at: np.ndarray, direction: np.ndarray, constant: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Directions [n d] of the MLP's input as directions of the residual stream at positions."""
        norm = self.mlp_norm
        if norm.bias is not None:
            constant = constant + direction @ norm.bias
        return norm.back_at(direction, at), constant


def names(config: Decoder) -> list[str]:
    """The activations that a graph needs."""
    found = ["embed", "logits"]
    for i, block in enumerate(config.blocks):
        here = [
            "middle",
            "out",
            "attention.pattern",
            "attention.z",
            "attention.out",
            "mlp.out" if isinstance(block.mlp, MoE) else "mlp.down",
        ]
        here += ["attention.gate"] if has_gate(block.attention) else []
        found += [f"blocks.{i}.{name}" for name in here]
    return [*found, *neuron_names(config)]


def check(config: Decoder) -> None:
    """UserError for a model whose layers are no sum of heads and an MLP."""
    for i, block in enumerate(config.blocks):
        of, mlp = block.attention, block.mlp
        before = "attention_norm" in block.norms and "bias" in block.norm.weights(1)
        for wrong, what in (
            (kind_of(of) not in KINDS, f"{kind_of(of)} attention"),
            (kind_of(of) in LATENT and before, "a norm with a bias before latent attention"),
            (mlp is None, "no MLP"),
            (isinstance(mlp, MoE) and mlp.norms, "a mixture of experts with norms of its own"),
            (
                isinstance(mlp, MoE) and mlp.bias and mlp.router.on_input,
                "experts with weights on inputs and biases",
            ),
            (getattr(mlp, "hidden_norm", None), "a norm within its MLP"),
            (
                block.streams or block.laurel or block.shared or block.per_layer,
                "more than one residual stream",
            ),
            (block.beside or block.cross, "a second mixer"),
            (block.scaled, "a factor on the whole residual stream"),
        ):
            if wrong:
                raise UserError(
                    f"an attribution graph is of layers with softmax attention and an MLP: layer {i} of this "
                    f"model has {what}"
                )
        odd = [name for name in ("clip", "value_norm", "kv_layer") if getattr(of, name, None) is not None]
        if odd or getattr(of, "value_of_key", False):
            why = odd[0] if odd else "the keys as values"
            raise UserError(
                f"an attribution graph needs values that are a matrix times what attention reads: those of "
                f"layer {i} have {why}"
            )


def layers(engine: Instrumented, seen: Mapping[str, np.ndarray]) -> list[FrozenLayer]:
    """Every layer of a text's forward pass, frozen."""
    return [FrozenLayer(engine, dict(seen), i) for i in range(len(engine.config.blocks))]
