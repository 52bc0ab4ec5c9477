"""A mixture of experts as one MLP of all its neurons, the routing frozen: ``neurons.py`` has their order."""

from __future__ import annotations

import numpy as np

from cutaway.inspect.instrumented import Instrumented, Values
from cutaway.inspect.neurons import shared_weight
from cutaway.layers.config import MoE


def inputs(engine: Instrumented, path: str, of: MoE, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The rows [f d] of every neuron in the matrices of one name ("gate" or "up"), and the biases [f]."""
    experts = [f"{path}.experts.{e}.{name}" for e in range(of.experts)]
    weight = np.concatenate([engine.weight(f"{one}.weight") for one in experts])
    weight = weight @ engine.weight(f"{path}.latent_down.weight") if of.latent else weight
    every = [*experts, *([f"{path}.shared.{name}"] if of.shared else [])]
    bias = np.concatenate([engine.weight(f"{one}.bias") for one in every]) if of.bias else None
    shared = [engine.weight(f"{path}.shared.{name}.weight")] if of.shared else []
    return np.concatenate([weight, *shared]), bias


def constant(engine: Instrumented, seen: Values, path: str, of: MoE) -> np.ndarray | None:
    """float32 [t d]: what the biases of the experts' last matrices add; None without biases."""
    if not of.bias:
        return None
    biases = np.stack([engine.weight(f"{path}.experts.{e}.down.bias") for e in range(of.experts)])
    weights = seen[f"{path}.expert_weights"][..., None]
    rows = (weights * biases[seen[f"{path}.expert_indices"]]).sum(1)
    rows = rows @ engine.weight(f"{path}.latent_up.weight").T if of.latent else rows
    if of.shared:
        rows = rows + shared_weight(seen, of, path) * engine.weight(f"{path}.shared.down.bias")
    return rows * np.float32(of.out_scale)
