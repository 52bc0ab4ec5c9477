"""A layer's neurons as one row, whether its MLP is dense or a mixture of experts.

In a mixture the neurons of all experts follow one another, expert by expert, the shared expert's last. Where
a token is not routed to an expert, its neurons' activations are 0; elsewhere they are multiplied by the
expert's weight, as in the layer's output.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cutaway.inspect.instrumented import Instrumented, Values
from cutaway.inspect.trace_values import TraceValues
from cutaway.layers.config import MoE


def activations(trace: TraceValues, layer: int) -> np.ndarray:
    """float32 [t f]: the activation of each neuron of a layer at each token."""
    of, name = trace.config.blocks[layer].mlp, f"blocks.{layer}.mlp"
    if of is None:
        return np.empty((len(trace.ids), 0), np.float32)
    return of_experts(trace, of, name) if isinstance(of, MoE) else trace[f"{name}.hidden"]


def of_experts(seen: TraceValues | Values, of: MoE, name: str) -> np.ndarray:
    """float32 [t f]: those of the mixture of this name."""
    expert_indices, weights = seen[f"{name}.expert_indices"], seen[f"{name}.expert_weights"]
    parts: list[np.ndarray] = []
    for e in range(of.experts):
        hidden = seen[f"{name}.experts.{e}.hidden"]  # of the tokens routed to it, in their order
        token, rank = np.nonzero(expert_indices == e)
        part = np.zeros((len(expert_indices), hidden.shape[1]), np.float32)
        by = 1.0 if of.router.on_input else weights[token, rank, None]  # which is in what the expert read
        part[token] = hidden * by
        parts.append(part)
    if of.shared:
        parts.append(shared_weight(seen, of, name) * seen[f"{name}.shared.hidden"])
    return np.concatenate(parts, axis=1)


def shared_weight(seen: TraceValues | Values, of: MoE, name: str) -> np.ndarray | float:
    """What multiplies the output of a mixture's shared expert: [t 1], or 1."""
    return 1 / (1 + np.exp(-seen[f"{name}.shared_gate"])) if of.shared_gate else 1.0


def output_weights(engine: Instrumented, layer: int) -> np.ndarray:
    """float32 [d f]: each neuron's output weights, times those of a norm after the MLP, whose size is no
    neuron's own.
    """
    block, path = engine.config.blocks[layer], f"blocks.{layer}.mlp"
    of: Any = block.mlp
    if of is None:
        return np.empty((engine.config.width, 0), np.float32)
    if isinstance(of, MoE):
        weight = expert_outputs(engine, of, path)
    else:
        weight = engine.weight(f"{path}.down.weight")
    weight = weight if of.out_scale == 1.0 else weight * np.float32(of.out_scale)
    return _normed(
        engine, weight, f"blocks.{layer}.mlp_post_norm" if "mlp_post_norm" in block.norms else None
    )


def expert_outputs(engine: Instrumented, of: MoE, path: str) -> np.ndarray:
    """The output weights of all experts' neurons, then of the shared one's."""
    own = [engine.weight(f"{path}.experts.{e}.down.weight") for e in range(of.experts)]
    weight = np.concatenate(own, axis=1)
    if of.latent:
        weight = engine.weight(f"{path}.latent_up.weight") @ weight
    parts = [_normed(engine, weight, f"{path}.experts_post_norm" if of.norms else None)]
    if of.shared:
        shared = engine.weight(f"{path}.shared.down.weight")
        parts.append(_normed(engine, shared, f"{path}.shared_post_norm" if of.norms else None))
    return np.concatenate(parts, axis=1)


def _normed(engine: Instrumented, weight: np.ndarray, norm: str | None) -> np.ndarray:
    """The weights times those of a norm that follows."""
    if norm is None or f"{norm}.weight" not in engine.config.weights():
        return weight
    return weight * engine.weight(f"{norm}.weight")[:, None]
