"""A decoder's config from settings by our names, and the settings of a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cutaway.attention import gqa, local, mha, mqa
from cutaway.attention.common.heads import Heads
from cutaway.layers.config import MLP, MoE, Norm, Router
from cutaway.model.block_config import Block
from cutaway.model.config import Decoder, Encoder
from cutaway.model.kinds import kind_of
from cutaway.position import rope
from cutaway.weights.family import Settings

OF_HEADS = (
    "scale",
    "bias",
    "out_bias",
    "qk_norm_over",
    "qk_norm_after",
    "temperature",
    "clip",
    "sinks",
    "relative",
    "value_norm",
)
OF_BLOCK = ("pre_norm", "post_norm", "parallel", "residual")
OF_DECODER = ("tied", "embedding_scale", "position", "softcap", "logit_scale", "embedding_norm", "head_bias")
OF_ENCODER = ("segments", "offset", "norm_first", "embedding_norm", "learned", "one_relative")
OF_ENCODER += ("embedding_width", "order", "mask", "tasks", "convolution")
OF_EXPERTS = ("normalised", "shared_gate", "limit", "out_scale")
OF_ROUTER = {
    name: name for name in ("score", "choice_bias", "groups", "top_groups", "group_of_two", "by_logits")
}
OF_ROUTER |= {"bias": "router_bias", "scale": "routed_scale", "jitter": "jitter"}


def heads(heads: int, kv_heads: int, window: int | None = None, **rest: Any) -> Heads:
    """The mechanism of these numbers: local with a window, else mha, mqa or gqa."""
    if window is not None:
        return local.Config(heads=heads, kv_heads=kv_heads, window=window, **rest)
    if kv_heads == heads:
        return mha.Config(heads=heads, **rest)
    if kv_heads == 1:
        return mqa.Config(heads=heads, **rest)
    return gqa.Config(heads=heads, kv_heads=kv_heads, **rest)


def shape(known: Settings) -> Settings:
    """What every mechanism over heads has, of these settings."""
    names = {"heads": "heads", "kv_heads": "kv_heads", "key_size": "head_size", "position": "rope"}
    return {name: known[key] for name, key in names.items()}


def decoder(known: Settings) -> Decoder:
    """The decoder of these settings."""
    norm = Norm(known["norm"], known["eps"], known.get("norm_weight", True), known.get("norm_bias", True))
    layers = known["layers"]
    windows = known.get("windows") or (known.get("window"),) * layers
    each = zip(
        windows,
        known.get("ropes") or positions(known, windows),
        known.get("dense") or ("experts" not in known,) * layers,
        strict=True,
    )

    def attention(window: int | None, position: rope.Config | None) -> Heads:
        own = known.get("qk_norm")
        return heads(
            known["heads"],
            known["kv_heads"],
            window,
            key_size=known["head_size"],
            position=position,
            qk_norm=norm if own is True else own or None,
            softcap=known.get("attention_softcap"),
            **{name: known[name] for name in OF_HEADS if name in known},
        )

    def block(window: int | None, position: rope.Config | None, dense: bool) -> Block:
        mlp = _dense(known) if dense else _sparse(known)
        own = {name: known[name] for name in OF_BLOCK if name in known}
        return Block(attention(window, position), mlp, norm, **own)

    kinds = list(each)
    mixers = known.get("mixers") or (None,) * layers
    made = {kind: block(*kind) for kind in set(kinds)}
    return Decoder(
        vocab=known["vocab"],
        width=known["width"],
        context=known["context"],
        blocks=tuple(
            made[kind] if own is None else replace(made[kind], attention=own)
            for kind, own in zip(kinds, mixers, strict=True)
        ),
        norm=norm,
        **{name: known[name] for name in OF_DECODER if name in known},
    )


def positions(known: Settings, windows: Sequence[int | None]) -> list[rope.Config | None]:
    """The rotary positions of each layer: local ones may have their own, and some have none."""
    near = known.get("local_rope") or known["rope"]
    nope = known.get("nope") or (False,) * len(windows)
    of_kind = [known["rope"] if window is None else near for window in windows]
    return [None if bare else position for position, bare in zip(of_kind, nope, strict=True)]


def _dense(known: Settings) -> MLP:
    return MLP(
        known["hidden"],
        known["activation"],
        known.get("gated", True),
        known.get("mlp_bias", False),
        hidden_norm=known.get("hidden_norm"),
    )


def _sparse(known: Settings) -> MoE:
    return MoE(
        known["experts"],
        known["top_k"],
        known["expert_hidden"],
        known["activation"],
        known.get("gated", True),
        shared=known.get("shared") or 0,
        bias=known.get("expert_bias", False),
        router=Router(**{name: known[key] for name, key in OF_ROUTER.items() if key in known}),
        **{name: known[name] for name in OF_EXPERTS if name in known},
    )


def window_of(attention: Any) -> int | None:
    """The window of a local layer."""
    return attention.window if kind_of(attention) in ("local", "gated_local") else None


def settings(config: Decoder | Encoder) -> Settings:
    """The settings of a config; ``save`` refuses one that they cannot express: it reads back as another."""
    windows = tuple(window_of(block.attention) for block in config.blocks)
    first = next((block.attention for block in config.blocks if isinstance(block.attention, Heads)), None)
    full = next((b.attention for b, w in zip(config.blocks, windows, strict=True) if w is None), first)
    near = next((b.attention for b, w in zip(config.blocks, windows, strict=True) if w is not None), None)
    nope = tuple(block.attention.position is None for block in config.blocks)
    rotary = next((b.attention.position for b in config.blocks if b.attention.position is not None), None)
    dense = next((block.mlp for block in config.blocks if isinstance(block.mlp, MLP)), None)
    sparse = next((block.mlp for block in config.blocks if isinstance(block.mlp, MoE)), None)
    known: Settings = {
        "layers": len(config.blocks),
        "causal": isinstance(config, Decoder),
        "vocab": config.vocab,
        "width": config.width,
        "context": config.context,
        "eps": config.blocks[0].norm.eps,
        "rope": full.position or rotary if full else rotary,
        "local_rope": near.position if near else None,
        "window": windows[0],
        "windows": windows,
        "nope": nope,
        "ropes": tuple(block.attention.position for block in config.blocks),
        "dense": tuple(isinstance(block.mlp, MLP) for block in config.blocks),
        "mlp_bias": dense.bias if dense else False,
    }
    if (mlp := dense or sparse) is not None:
        known |= {"hidden": mlp.hidden, "activation": mlp.activation, "gated": mlp.gated}
    if first is not None:
        known |= {"heads": first.heads, "kv_heads": first.groups, "head_size": first.key_size}
        known |= {"qk_norm": first.qk_norm is not None, "attention_softcap": first.softcap}
        known["multi_query"] = first.groups == 1
        known |= {name: getattr(first, name) for name in OF_HEADS}
    known |= {name: getattr(config.blocks[0], name) for name in OF_BLOCK}
    known["side_by_side"] = known["parallel"] is not None
    if sparse is not None:
        known |= {"experts": sparse.experts, "top_k": sparse.top_k, "expert_hidden": sparse.hidden}
        known |= {name: getattr(sparse, name) for name in ("shared", *OF_EXPERTS)}
        known |= {"expert_bias": sparse.bias}
        known |= {key: getattr(sparse.router, name) for name, key in OF_ROUTER.items()}
    if isinstance(config, Encoder):
        return known | {name: getattr(config, name) for name in OF_ENCODER}
    return known | {name: getattr(config, name) for name in OF_DECODER}
