"""A mechanism in a model's sizes: its options, its costs as numbers, and the bytes of its cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from cutaway.attention.common.cost import at, quantized_bytes_per_token
from cutaway.attention.common.registry import Kind, Sizes
from cutaway.errors import UserError

EXAMPLE = Sizes(width=4096, heads=32, groups=8, key_size=128, value_size=128)  # Llama 3 8B
SMALL = Sizes(width=8, heads=2, groups=2, key_size=4, value_size=4)  # a drawing does not depend on sizes
TAKEN = ("heads", "kv_heads", "key_size", "value_size", "qk_norm")  # from the model, or no plain value


def sizes_of(width: int, attention: Any) -> Sizes:
    """The width, heads and sizes of a layer's attention."""
    groups = getattr(attention, "groups", attention.heads)
    return Sizes(width, attention.heads, groups, attention.key_size, attention.values)


def row(kind: Kind, sizes: Sizes, tokens: int, bits: int) -> dict[str, Any]:
    """A mechanism as JSON; ``refused`` is why it does not fit the model."""
    costs, facts = asdict(kind.cost), {"kind": kind.name, "summary": kind.summary, "reads": kind.reads}
    try:
        config = kind.like(sizes, {})
    except UserError as problem:
        return facts | {"refused": str(problem).removeprefix("attention: "), "cost": costs}
    letters = {"n": tokens, "s": tokens, "d": sizes.width}
    worked = {name: None if one is None else at(one, config, **letters) for name, one in costs.items()}
    return (
        facts
        | {"options": {name: getattr(config, name) for name in options(kind)}}
        | _bytes(config, sizes, bits)
        | {"cost": costs, "at": worked}
    )


def _bytes(config: Any, sizes: Sizes, bits: int) -> dict[str, int | None]:
    """Bytes per token, bytes of a recurrent state, and the most tokens that the cache holds, None for all."""
    if hasattr(config, "state_bytes"):
        if bits < 16:  # a matrix that is summed into has no codes: numbers of 16 bits are its smallest
            bits = 16
        return {"bytes_per_token": 0, "state_bytes": config.state_bytes(bits // 8), "max_tokens": None}
    if not hasattr(config, "state"):
        return {"bytes_per_token": config.bytes_per_token(sizes.width, 1) * bits // 8, "max_tokens": None}
    if config.reads == "all":
        return {"bytes_per_token": 0, "max_tokens": 0}
    each = (
        config.bytes_per_token(bits // 8) if bits >= 16 else quantized_bytes_per_token(config.entries, bits)
    )
    held = getattr(config, "held", None)
    return {"bytes_per_token": each, "max_tokens": None if held is None else sum(held)}


BITS = 16  # of a number in the cache
LENGTHS = tuple(2**power for power in range(4, 18))  # tokens of text


def by_length(kind: Kind, sizes: Sizes) -> dict[str, Any]:
    """A mechanism's ``row``, with a layer's multiplications and float16 cache bytes at each of LENGTHS."""
    rows = [row(kind, sizes, n, BITS) for n in LENGTHS]
    if "refused" in rows[0]:
        return rows[0]
    worked = {name: [one["at"][name] for one in rows] for name in ("prefill", "decode")}
    held = [cache_bytes(one, n) for one, n in zip(rows, LENGTHS, strict=True)]
    return rows[0] | worked | {"cache": held, "lengths": list(LENGTHS), "formulas": rows[0]["cost"]}


def cache_bytes(found: Mapping[str, Any], tokens: int) -> int | None:
    """The bytes that one layer's cache, or its state, holds of a text, by the mechanism's ``row``."""
    held = tokens if found.get("max_tokens") is None else min(tokens, found["max_tokens"])
    return found.get("state_bytes", 0) + found["bytes_per_token"] * held


def options(kind: Kind) -> list[str]:
    """The options that a flag can give, those of its own file first."""
    plain = (f for f in fields(kind.config) if "variants" not in f.metadata and not is_dataclass(f.default))
    names = [f.name for f in plain if f.name not in TAKEN]
    return sorted(names, key=lambda name: name not in (*kind.usual, *kind.config.__annotations__))


def to_scale(kind: Kind, length: int, chosen: Mapping[str, Any]) -> dict[str, int]:
    """The usual options so much smaller that a third of the drawing is the largest of them."""
    usual = {n: v for n, v in kind.usual_in(SMALL).items() if isinstance(kind.usual[n], int)}
    largest = max(usual.values(), default=1)
    scale = min(1.0, max(1, length // 3) / largest)
    return {name: max(1, round(value * scale)) for name, value in usual.items() if name not in chosen}
