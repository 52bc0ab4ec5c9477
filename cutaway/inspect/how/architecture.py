"""The loaded model as a diagram's data: each kind of block with its parts, sizes, bytes and switches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from itertools import groupby
from typing import Any

from cutaway.inspect.loaded import Loaded
from cutaway.model.kinds import kind_of

SIZES = ("heads", "kv_heads", "key_size", "value_size", "hidden", "experts", "top_k", "latent", "rope_dim")
NORMS = ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")
WEIGHTS = 24  # of a part that are listed


def architecture(lm: Loaded) -> dict[str, Any]:
    """The model's blocks, equal neighbours as one, and what is around them.

    A switch is an option of a part: its value, and whether it is the usual one.
    """
    config: Any = lm.config
    stored = {name: lm.checkpoint.tensors.later(name) for name in lm.checkpoint.tensors}
    blocks, first = [], 0
    for block, same in groupby(config.blocks):
        last = first + len(list(same)) - 1
        blocks.append({"first": first, "last": last, **_block(block, stored, f"blocks.{first}.")})
        first = last + 1
    outside = [name for name in stored if not name.startswith("blocks.")]
    return {
        "width": config.width,
        "vocabulary": config.vocab,
        "context": config.context,
        "tied": config.tied,
        "blocks": blocks,
        "outside": _weights(stored, outside, ""),
        "parameters": sum(math.prod(one.shape) for one in stored.values()),
        "bytes": sum(one.nbytes for one in stored.values()),
        "switches": list(_switches(config, ("blocks", "norm", "tied"))),
    }


def _block(block: Any, stored: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    parts = {"attention": block.attention, "mlp": block.mlp}
    return {
        "parts": [_part(name, of, stored, prefix) for name, of in parts.items() if of is not None],
        "norms": [name for name in NORMS if name in block.norms],
        "norm": block.norm.kind,
        "parallel": block.parallel,
        "switches": list(_switches(block, ("attention", "mlp", "norm", "parallel"))),
    }


def _part(name: str, config: Any, stored: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    names = [one for one in stored if one.startswith(f"{prefix}{name}.")]
    return {
        "name": name,
        "kind": kind_of(config),
        "sizes": {one: value for one in SIZES if isinstance(value := getattr(config, one, None), int)},
        "weights": _weights(stored, names, f"{prefix}{name}."),
        "parameters": sum(math.prod(stored[one].shape) for one in names),
        "bytes": sum(stored[one].nbytes for one in names),
        "switches": list(_switches(config, SIZES)),
    }


def _weights(stored: Mapping[str, Any], names: list[str], prefix: str) -> list[dict[str, Any]]:
    found = ((name.removeprefix(prefix), stored[name]) for name in names[:WEIGHTS])
    return [
        {"name": name, "shape": list(one.shape), "type": one.type, "bytes": one.nbytes} for name, one in found
    ]


def _switches(config: Any, known: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The options of a part that are no sizes, as text, with whether each is as usual."""
    for field in fields(config):
        if field.name in known or field.default is MISSING:
            continue
        value = getattr(config, field.name)
        yield {"name": field.name, "value": _text(value), "usual": value == field.default}


def _text(value: Any) -> str:
    if is_dataclass(value):
        own = {field.name: getattr(value, field.name) for field in fields(value)}
        changed = [f"{f.name} {own[f.name]}" for f in fields(value) if own[f.name] != f.default]
        return " ".join([kind_of(value), ", ".join(changed)]).strip()
    if value is None or isinstance(value, bool):
        return {True: "on", False: "off", None: "none"}[value]
    return str(value)
