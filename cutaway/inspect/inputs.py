"""The activations that a layer has, and those that studies need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cutaway.errors import UserError
from cutaway.layers.config import MLP
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of

if TYPE_CHECKING:
    from torch import Tensor

GATED = ("gated", "gated_local")


def check_patterns(config: Decoder) -> None:
    """UserError unless every layer has attention weights."""
    for i, block in enumerate(config.blocks):
        if not has_pattern(block.attention):
            raise UserError(f"layer {i} is recurrent: it has no attention weights")


def has_pattern(config: Any) -> bool:
    """Whether a layer has attention weights; a recurrent one keeps a state instead."""
    return hasattr(config, "visibility")


def has_gate(config: Any) -> bool:
    """Whether a gate is between what heads read and the output matrix."""
    return kind_of(config) in GATED or getattr(config, "gated", False)


def out_input(of: Any, layer: int) -> str:
    """The activation that a layer's output matrix reads: z, or what a gate or a recurrence makes of it."""
    own = has_gate(of) or not has_pattern(of)
    return f"blocks.{layer}.attention.{'out_input' if own else 'z'}"


def output_heads(config: Any) -> int:
    """How many heads of a layer have an output: of a differential layer's attention maps half."""
    return config.heads // config.maps


def mlp_input(config: Decoder, layer: int) -> str:
    """The activation that a layer's MLP reads: what a norm gives, or without one the residual stream."""
    block = config.blocks[layer]
    norm = "attention_norm" if block.parallel == "shared" else "mlp_norm"
    return f"blocks.{layer}.{norm if norm in block.norms else 'middle'}"


def source_layer(config: Decoder, layer: int) -> int:
    """The layer whose keys and values a layer reads: its own, or an earlier one's that lends them."""
    lender = getattr(config.blocks[layer].attention, "kv_layer", None)
    return layer if lender is None else lender


def attention_names(config: Decoder) -> list[str]:
    """The activations of each layer's attention that attribution and the explanation need."""
    found: list[str] = []
    for i, block in enumerate(config.blocks):
        of = block.attention
        names = ["q", "z", "pattern", "out"] if has_pattern(of) else ["out_input", "out"]
        names += ["gate", "out_input"] if has_gate(of) else []
        names += ["chosen"] if hasattr(of, "top_k") else []
        found += [f"blocks.{i}.attention.{name}" for name in names]
        found += [f"blocks.{i}.beside.out"] if block.beside else []
        lender = source_layer(config, i)
        found += [f"blocks.{lender}.attention.{name}" for name in "kv"] if has_pattern(of) else []
    return list(dict.fromkeys(found))


def attribution_names(config: Decoder) -> Sequence[str]:
    """The activations that direct logit attribution needs: a trace of these names has them all."""
    return ["embed", "blocks.*.middle", "blocks.*.out", "logits", *attention_names(config)]


def neuron_names(config: Decoder) -> list[str]:
    """The activations that ``neurons.activations`` needs."""
    found: list[str] = []
    for i, block in enumerate(config.blocks):
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


def view_names(config: Decoder) -> list[str]:
    """The activations that an explanation and every view of its page need."""
    return [*dict.fromkeys((*attribution_names(config), *neuron_names(config)))]


def row(model: Any, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A batch of one for a PyTorch model: the ids, and their positions 0, 1, 2, ... [1 t]."""
    import torch

    here = next(model.parameters()).device
    return torch.tensor([list(ids)], dtype=torch.long, device=here), torch.arange(len(ids), device=here)[None]
