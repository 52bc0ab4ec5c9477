"""A layer's neurons as one row, whether its MLP is dense or a mixture of experts.

In a mixture the neurons of all experts follow one another, expert by expert, the shared expert's last. Where
a token is not routed to an expert, its neurons' activations are 0; elsewhere they are multiplied by the
expert's weight, as in the layer's output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cutaway.inspect.trace import Trace
from cutaway.layers.config import MLP
from cutaway.layers.moe import MoE
from cutaway.model.decoder import Decoder
from cutaway.shapes import Float


def names(model: Decoder) -> list[str]:
    """The values that ``activations`` needs."""
    found: list[str] = []
    for i, block in enumerate(model.config.blocks):
        name, mlp = f"blocks.{i}.mlp", block.mlp
        if mlp is None:
            continue
        if isinstance(mlp, MLP):
            found.append(f"{name}.hidden")
            continue
        found += [f"{name}.expert_indices", f"{name}.expert_weights", f"{name}.experts.*.hidden"]
        found += [f"{name}.shared.hidden"] if mlp.shared else []
        found += [f"{name}.shared_gate"] if mlp.shared_gate else []
    return found


def activations(trace: Trace, layer: int) -> Float[Tensor, "t f"]:
    """The activation of each neuron of a layer at each token."""
    mlp: Any = trace.model.blocks[layer].mlp
    name = f"blocks.{layer}.mlp"
    if not isinstance(mlp, MoE):
        return trace[f"{name}.hidden"].float()
    expert_indices, weights = trace[f"{name}.expert_indices"], trace[f"{name}.expert_weights"].float()
    parts: list[Tensor] = []
    for e in range(len(mlp.experts)):
        hidden = trace[f"{name}.experts.{e}.hidden"].float()  # of the tokens routed to it, in their order
        token, rank = (expert_indices == e).nonzero(as_tuple=True)
        part = hidden.new_zeros(len(expert_indices), hidden.shape[1])
        by = 1.0 if mlp.routing.on_input else weights[token, rank, None]  # which is in what the expert read
        parts.append(part.index_add(0, token, hidden * by))
    if mlp.shared is not None:
        gate = 1.0 if mlp.shared_gate is None else trace[f"{name}.shared_gate"].float().sigmoid()
        parts.append(gate * trace[f"{name}.shared.hidden"].float())
    return torch.cat(parts, dim=1)


def output_weights(block: Any) -> Float[Tensor, "d f"]:
    """Each neuron's output weights, times those of a norm after the MLP, whose size is no neuron's own."""
    mlp = block.mlp
    if not isinstance(mlp, MoE):
        return _normed(mlp.down.weight.float(), block.mlp_post_norm)
    of: Any = mlp
    weight = torch.cat([expert.down.weight.float() for expert in of.experts], dim=1)
    if not isinstance(of.latent_up, nn.Identity):
        weight = of.latent_up.weight.float() @ weight
    parts = [_normed(weight, of.experts_post_norm)]
    if of.shared is not None:
        parts.append(_normed(of.shared.down.weight.float(), of.shared_post_norm))
    return _normed(torch.cat(parts, dim=1), block.mlp_post_norm)


def _normed(weight: Float[Tensor, "d f"], norm: Any) -> Float[Tensor, "d f"]:
    """The weights times those of a norm that follows."""
    return weight if isinstance(norm, nn.Identity) else weight * norm.weight.float()[:, None]
