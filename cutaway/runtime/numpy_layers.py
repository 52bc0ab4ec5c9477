"""The parts of a layer in numpy, by the names of their weights: products, norms, MLPs, mixtures of experts.

In a mixture of experts a token passes the MLPs that its router picks; their outputs are added up by weight.
Every sum has the native step's order and every product its rounding (arithmetic.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from cutaway.layers.config import MLP, MoE, Norm
from cutaway.position import rope
from cutaway.position.scaling import LongRoPE
from cutaway.quantization import formats
from cutaway.runtime import arithmetic, matmul, packed
from cutaway.runtime.activation_functions import ACTIVATIONS, xielu
from cutaway.runtime.adapter import Beside
from cutaway.weights.named_tensors import Tensors

See = Callable[[str, np.ndarray], np.ndarray]  # of a value by its name: the value as edits leave it
NONE: Mapping[str, Beside] = {}  # no adapter


def unwatched(what: str, value: np.ndarray) -> np.ndarray:
    """A value as it is."""
    return value


class Layers:
    """The layers of a model whose weights are ``tensors``."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def vector(self, name: str) -> np.ndarray:
        return formats.unpack(self.tensors[name])

    def matrix(
        self, path: str, x: np.ndarray, adapter: Mapping[str, Beside] = NONE, factor: float = 1.0
    ) -> np.ndarray:
        """W (factor x) and the bias."""
        out = matmul.product(packed.as_it_runs(f"{path}.weight", self.tensors), x)
        if path in adapter:
            out = adapter[path].applied(out, x)
        out = out * np.float32(factor)
        bias = f"{path}.bias"
        return out + formats.unpack(self.tensors[bias]) if bias in self.tensors else out

    def norm(self, x: np.ndarray, path: str, of: Norm | None) -> np.ndarray:
        if of is None:
            return x
        weight = self.vector(f"{path}.weight") if of.weight else np.float32(1)
        if of.kind == "rms":
            return arithmetic.rms_norm(x, weight, of.eps)
        bias = self.vector(f"{path}.bias") if of.weight and of.bias else None
        return arithmetic.layer_norm(x, weight, bias, of.eps)

    def mlp(
        self,
        of: MLP,
        path: str,
        x: np.ndarray,
        adapter: Mapping[str, Beside] = NONE,
        see: See = unwatched,
    ) -> np.ndarray:
        up = self.matrix(f"{path}.up", x, adapter)
        gate = self.matrix(f"{path}.gate", x, adapter) * np.float32(of.gate_scale) if of.gated else up
        if of.limit is not None:
            limit = np.float32(of.limit)
            gate, up = np.minimum(gate, limit), np.minimum(np.maximum(up, -limit), limit) + np.float32(1)
        if of.activation == "xielu":
            active = xielu(gate, *packed.xielu(self.tensors, path))
        else:
            active = ACTIVATIONS[of.activation](gate)
        hidden = see("mlp.hidden", active * up if of.gated else active)
        return see("mlp.down", self.matrix(f"{path}.down", hidden, adapter)) * np.float32(of.out_scale)

    def mixture(
        self, of: MoE, path: str, x: np.ndarray, adapter: Mapping[str, Beside], see: See
    ) -> np.ndarray:
        scores = self.matrix(f"{path}.router", x, adapter)
        if of.router.score == "sigmoid":
            scores = np.float32(1) / (np.float32(1) + arithmetic.exp(-scores))
        else:
            scores = arithmetic.exp(scores - scores.max(axis=1, keepdims=True))
            scores /= _in_order(scores)
        merit = scores + self.vector(f"{path}.choice_bias") if of.router.choice_bias else scores
        merit = _open(of, merit) if of.router.groups > 1 else merit
        chosen = np.argsort(-merit, axis=1, kind="stable")[:, : of.top_k]  # first of equals first
        weights = np.take_along_axis(scores, chosen, axis=1)
        if of.normalised:
            weights /= _in_order(weights)
        weights *= np.float32(of.router.scale)
        see("mlp.expert_indices", chosen)
        weights = see("mlp.expert_weights", weights)
        out = np.zeros_like(x)
        if of.common is not None:

            def shared(what: str, value: np.ndarray) -> np.ndarray:
                return see("mlp.shared.hidden", value) if what == "mlp.hidden" else value

            out += self.mlp(of.common, f"{path}.shared", x, adapter, shared)
        if of.shared_gate:
            gate = see("mlp.shared_gate", self.matrix(f"{path}.shared_gate", x, adapter))
            out *= np.float32(1) / (np.float32(1) + arithmetic.exp(-gate))
        neurons = np.empty((len(x), of.top_k, of.expert.hidden), np.float32)
        for rank in range(of.top_k):
            for e in np.unique(chosen[:, rank]).tolist():
                of_e = chosen[:, rank] == e

                def own(
                    what: str, value: np.ndarray, of_e: np.ndarray = of_e, rank: int = rank
                ) -> np.ndarray:
                    if what == "mlp.hidden":
                        neurons[of_e, rank] = value
                    return value

                expert_out = self.mlp(of.expert, f"{path}.experts.{e}", x[of_e], adapter, own)
                out[of_e] += weights[of_e, rank, None] * expert_out
        see("mlp.expert_hidden", neurons)
        return see("mlp.out", out * np.float32(of.out_scale))


def rotated(x: np.ndarray, positions: np.ndarray, by: rope.Config | None, longer: bool = False) -> np.ndarray:
    """Heads [t h k] at ``positions`` [t], their leading dimensions rotated pair by pair; ``longer``: of a
    text past LongRoPE's first lengths.
    """
    if by is None:
        return x
    long = by.scaling.original + 1 if longer and isinstance(by.scaling, LongRoPE) else 0
    angles = positions[:, None] * by.frequencies(long)
    cos, sin = (
        (np.asarray(side(angles)) * by.magnitude).astype(np.float32)[:, None] for side in (np.cos, np.sin)
    )
    pairs = cos.shape[-1]
    first, second = (
        (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
        if by.interleaved
        else (slice(0, pairs), slice(pairs, 2 * pairs))
    )
    out = x.copy()
    out[..., first] = x[..., first] * cos - x[..., second] * sin
    out[..., second] = x[..., second] * cos + x[..., first] * sin
    return out


def _open(of: MoE, merit: np.ndarray) -> np.ndarray:
    """Experts' merit [t e], -inf outside the best groups: a group counts for its best, or its best two."""
    grouped = merit.reshape(len(merit), of.router.groups, -1)
    ranked = -np.sort(-grouped, axis=2)
    best = ranked[..., 0] + ranked[..., 1] if of.router.group_of_two else ranked[..., 0]
    kept = np.argsort(-best, axis=1, kind="stable")[:, : of.router.top_groups]
    open = np.zeros(best.shape, bool)
    np.put_along_axis(open, kept, True, axis=1)
    return np.where(open[..., None], grouped, np.float32(-np.inf)).reshape(merit.shape)


def _in_order(x: np.ndarray) -> np.ndarray:
    """The sum of each row, one number after another: float32 [t 1] of [t n]."""
    return np.add.accumulate(x, axis=1)[:, -1:]
