"""Every attention mechanism on one sentence, in the model's sizes: its mask, its cost and its cache."""

from __future__ import annotations

from typing import Any

from cutaway.attention.common import mask_plot, registry, usual
from cutaway.attention.common.registry import Sizes
from cutaway.model.kinds import kind_of

DRAWN = 24  # tokens of a mask


def mechanisms(config: Any, tokens: int) -> dict[str, Any]:
    """The mechanisms by name, each with its mask over so many tokens, 24 at most, and figures by length.

    ``prefill`` and ``decode`` are multiplications of one layer, ``cache`` its bytes, float16.
    """
    first = next(block.attention for block in config.blocks if hasattr(block.attention, "visibility"))
    sizes = usual.sizes_of(config.width, first)
    rows = [_row(kind, sizes, min(max(tokens, 2), DRAWN)) for kind in registry.kinds()]
    own = sorted({kind_of(block.attention) for block in config.blocks})
    return {"lengths": list(usual.LENGTHS), "own": own, "kinds": [row for row in rows if row is not None]}


def _row(kind: registry.Kind, sizes: Sizes, length: int) -> dict[str, Any] | None:
    """One mechanism; None where it does not fit these sizes."""
    found = usual.by_length(kind, sizes)
    if "refused" in found:
        return None
    drawn = mask_plot.draw(kind.like(usual.SMALL, usual.to_scale(kind, length, {})), length)
    mask = drawn.mask and ["".join(".#"[cell] for cell in row) for row in drawn.mask]
    kept = ("kind", "summary", "reads", "options", "formulas", "prefill", "decode", "cache")
    return {name: found[name] for name in kept} | {"mask": mask, "caption": drawn.caption}
