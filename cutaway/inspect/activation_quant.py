"""Tracing the runtime: the PyTorch model computes with the runtime's rounded activations.

The runtime rounds what a packed matrix reads to eight bits, to bfloat16 where its weights are that, and keeps
keys and values as halves (runtime/matmul.py, engine.py). Edits that round the PyTorch model's activations
likewise make a trace of what the runtime computed: every name, every view, and the runtime's logits. Latent
attention's two products of each head read unrounded vectors here: the PyTorch model may not make them. So do
an indexer's scores read its keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from cutaway.hooks import Listener
from cutaway.layers.config import MLP, MoE
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of
from cutaway.runtime.block_numbers import attends, latent
from cutaway.runtime.matmul import FLOATS, rounded, twice_rounded
from cutaway.weights.named_tensors import Tensors


def edits(
    config: Decoder, tensors: Tensors, own: Mapping[str, Listener] | None = None
) -> dict[str, Listener]:
    """The edits that make the PyTorch model compute as the runtime does, after the user's ``own``."""
    out: dict[str, Listener] = dict(own or {})
    reads: dict[str, tuple[str, Callable[..., Any]]] = {
        "norm": ("embedding.weight" if config.tied else "head.weight", _round_twice)
    }
    if config.per_layer is not None:
        reads["per_layer.input"] = ("per_layer.projection.weight", _round)
    for n in range(len(config.blocks)):
        path = f"blocks.{n}"
        reads[f"{path}.attention_norm"] = (f"{path}.attention.query.weight", _round)
        heads, kind = attends(config.blocks[n]), kind_of(config.blocks[n].attention)
        if latent(config.blocks[n]):
            reads[f"{path}.attention_norm"] = (f"{path}.attention.down.weight", _round)
            if f"{path}.attention.query_down.weight" in tensors:
                reads[f"{path}.attention.query_norm"] = (f"{path}.attention.query.weight", _round)
            out[f"{path}.attention.latent"] = _after(out.get(f"{path}.attention.latent"), _halved)
        whole = kind not in ("gated", "gated_local", "sub_norm") and (heads or latent(config.blocks[n]))
        read = "z" if whole else "out_input"
        reads[f"{path}.attention.{read}"] = (f"{path}.attention.out.weight", _round_heads)
        if config.blocks[n].beside:
            reads[f"{path}.beside.out_input"] = (f"{path}.beside.out.weight", _round_heads)
        mlp = config.blocks[n].mlp
        reads |= _mlp_reads(path, mlp) if mlp else {}
        if config.per_layer is not None:
            reads[f"{path}.per_layer.input"] = (f"{path}.per_layer.gate.weight", _round)
            reads[f"{path}.per_layer.hidden"] = (f"{path}.per_layer.out.weight", _round)
        for name in ("k", "v") if heads and config.blocks[n].attention.kv_layer is None else ():
            out[f"{path}.attention.{name}"] = _after(out.get(f"{path}.attention.{name}"), _halved)
    for name, (weight, how) in reads.items():
        type = tensors.later(weight).type
        if type not in FLOATS:
            out[name] = _after(out.get(name), partial(how, type=type))
    return out


def _mlp_reads(path: str, mlp: MLP | MoE) -> dict[str, tuple[str, Callable[[Any, str], Any]]]:
    """The values that a layer's MLP multiplies, and by which weight; routers read floats as they are."""
    if isinstance(mlp, MLP):
        reads = {f"{path}.mlp_norm": "mlp.up.weight", f"{path}.mlp.hidden": "mlp.down.weight"}
    else:
        reads = {f"{path}.mlp.input": "mlp.experts.0.up.weight"}
        reads |= {
            f"{path}.mlp.experts.{e}.hidden": f"mlp.experts.{e}.down.weight" for e in range(mlp.experts)
        }
        reads |= {f"{path}.mlp.shared.hidden": "mlp.shared.down.weight"} if mlp.shared else {}
    return {name: (f"{path}.{weight}", _round) for name, weight in reads.items()}


def _after(first: Listener | None, then: Listener) -> Listener:
    if first is None:
        return then

    def both(value: Any) -> Any | None:
        changed = first(value)
        return then(value if changed is None else changed)

    return both


def _halved(value: Any) -> Any:
    return value.half().to(value.dtype)


def _round(value: Any, type: str, how: Callable[[np.ndarray, str], np.ndarray] = rounded) -> Any:
    flat = value.detach().reshape(-1, value.shape[-1]).float().cpu().numpy()
    near = value.new_tensor(how(flat, type)).view(value.shape)
    return value + (near - value).detach() if value.requires_grad else near  # the gradient passes


def _round_twice(value: Any, type: str) -> Any:
    return _round(value, type, twice_rounded)


def _round_heads(value: Any, type: str) -> Any:
    """The heads' vectors [b h t v] rounded as one concatenated vector."""
    joined = value.transpose(1, 2)
    return _round(joined.flatten(2), type).view(joined.shape).transpose(1, 2)
