"""A text as a model's inputs, and which activations a layer has."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cutaway.attention import differential, gated
from cutaway.model.decoder import Decoder
from cutaway.shapes import Int


def device(model: Decoder) -> torch.device:
    """The device of the model's weights."""
    return next(model.parameters()).device


def row(model: Decoder, ids: Sequence[int]) -> tuple[Int[Tensor, "1 t"], Int[Tensor, "1 t"]]:
    """A batch of one: the ids, and their positions 0, 1, 2, ..."""
    here = device(model)
    return torch.tensor([list(ids)], dtype=torch.long, device=here), torch.arange(len(ids), device=here)[None]


def has_pattern(config: Any) -> bool:
    """Whether a layer has attention weights; a recurrent one keeps a state instead."""
    return hasattr(config, "visibility")


def has_gate(config: Any) -> bool:
    """Whether a gate is between what heads read and the output matrix."""
    return isinstance(config, gated.Config) or getattr(config, "gated", False)


def output_heads(config: Any) -> int:
    """How many heads of a layer have an output: of a differential layer's attention maps half."""
    return config.heads // 2 if isinstance(config, differential.Config) else config.heads


def attention_names(model: Decoder) -> list[str]:
    """The activations of each layer's attention that attribution and the explanation need."""
    found = []
    for i, block in enumerate(model.config.blocks):
        config = block.attention
        names = ["q", "k", "v", "z", "out"]
        names += ["pattern"] if has_pattern(config) else ["out_input"]
        names += ["gate", "out_input"] if has_gate(config) else []
        names += ["lambda"] if isinstance(config, differential.Config) else []
        names += ["chosen"] if hasattr(config, "top_k") else []
        found += [f"blocks.{i}.attention.{name}" for name in names]
    return found


def attribution_names(model: Decoder) -> list[str]:
    """The activations that direct logit attribution needs: a trace of these names has them all."""
    return ["embed", "blocks.*.middle", "blocks.*.out", "logits", *attention_names(model)]
