"""A decoder's block as a diagram: the residual stream and what adds to it, with true sizes and parameters."""

from __future__ import annotations

import math
from typing import Any

from cutaway.errors import UserError
from cutaway.layers.config import MLP
from cutaway.model.config import Decoder
from cutaway.model.kinds import kind_of
from cutaway.page.svg.diagrams import Step, block


def drawn(config: Any, title: str, layer: int = 0) -> str:
    """One block of a decoder as an SVG. UserError for a model without such blocks, or a layer it lacks."""
    if not isinstance(config, Decoder) or not config.blocks:
        raise UserError("a block is drawn of a decoder alone, and this model is none")
    if not 0 <= layer < len(config.blocks):
        raise UserError(f"there is no layer {layer}: this model's layers are 0 to {len(config.blocks) - 1}")
    own = config.blocks[layer]
    shapes = {
        name.removeprefix(f"blocks.{layer}."): math.prod(shape)
        for name, shape in config.weights().items()
        if name.startswith(f"blocks.{layer}.")
    }
    equal = sum(one == own for one in config.blocks)
    after = f"{equal} of the model's {len(config.blocks)} blocks are like this one: "
    after += f"{sum(shapes.values()):,} parameters each."
    branches = [_attention(own, shapes, config.width)]
    if own.mlp is not None:
        branches.append(_mlp(own, shapes, config.width))
    if own.parallel:
        after += " Both branches read the stream before either adds to it."
    return block(title, config.width, branches, after)


def _count(shapes: dict[str, int], *prefixes: str) -> int:
    return sum(size for name, size in shapes.items() if name.startswith(prefixes))


def _norm(own: Any, shapes: dict[str, int], name: str) -> list[Step]:
    if name not in own.norms:
        return []
    weights = _count(shapes, f"{name}.")
    scaled = ", then each number by its weight" if weights else ""
    return [Step("norm", f"{own.norm.kind}: to one size{scaled}", weights)]


def _attention(own: Any, shapes: dict[str, int], width: int) -> list[Step]:
    of, kind = own.attention, kind_of(own.attention)
    heads, size = getattr(of, "heads", None), getattr(of, "key_size", None)
    groups = getattr(of, "groups", heads)
    if heads is None or size is None:
        about = f"a mixer of kind {kind}"
        return [*_norm(own, shapes, "attention_norm"), Step(kind, about, _count(shapes, "attention."))]
    asks = f"{heads} queries of {size}, {groups} keys and values"
    made = Step(
        "queries, keys, values", asks, _count(shapes, "attention.") - _count(shapes, "attention.out.")
    )
    weighs = Step(f"attention ({kind})", f"each of {heads} heads: scores, mask, softmax, mean of values")
    out = Step("out", f"{heads} × {of.values} → {width}", _count(shapes, "attention.out."))
    return [*_norm(own, shapes, "attention_norm"), made, weighs, out]


def _mlp(own: Any, shapes: dict[str, int], width: int) -> list[Step]:
    of = own.mlp
    first = _norm(own, shapes, "mlp_norm")
    if not isinstance(of, MLP):
        about = f"{getattr(of, 'experts', 0)} experts, {getattr(of, 'top_k', 0)} of them for a token"
        return [*first, Step("experts", about, _count(shapes, "mlp."))]
    down = _count(shapes, "mlp.down.")
    names = "gate and up" if of.gated else "up"
    up = Step(names, f"{width} → {of.hidden:,}, then {of.activation}", _count(shapes, "mlp.") - down)
    return [*first, up, Step("down", f"{of.hidden:,} → {width}", down)]
