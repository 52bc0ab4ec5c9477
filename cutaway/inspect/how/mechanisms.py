"""Every attention mechanism on one sentence, in the model's sizes: its mask, its cost and its cache."""

from __future__ import annotations

from typing import Any

from cutaway.attention.common import mask_plot, registry, usual
from cutaway.attention.common.registry import Sizes

DRAWN = 24  # tokens of a mask
LENGTHS = tuple(2**power for power in range(4, 18))
BITS = 16


def mechanisms(config: Any, tokens: int) -> dict[str, Any]:
    """The mechanisms by name, each with its mask over so many tokens, 24 at most, and figures by length.

    ``prefill`` and ``decode`` are multiplications of one layer, ``cache`` its bytes, float16.
    """
    first = next(block.attention for block in config.blocks if hasattr(block.attention, "visibility"))
    sizes = usual.sizes_of(config.width, first)
    rows = [_row(kind, sizes, min(max(tokens, 2), DRAWN)) for kind in registry.kinds()]
    own = sorted({registry_name(block.attention) for block in config.blocks})
    return {"lengths": list(LENGTHS), "own": own, "kinds": [row for row in rows if row is not None]}


def registry_name(attention: Any) -> str:
    """The mechanism's name."""
    return type(attention).__module__.rsplit(".", 1)[1]


def _row(kind: registry.Kind, sizes: Sizes, length: int) -> dict[str, Any] | None:
    """One mechanism; None where it does not fit these sizes."""
    figures = {n: usual.row(kind, sizes, n, BITS) for n in LENGTHS}
    if "refused" in figures[LENGTHS[0]]:
        return None
    drawn = mask_plot.draw(kind.like(usual.SMALL, usual.to_scale(kind, length, {})), length)
    return {
        "kind": kind.name,
        "summary": kind.summary,
        "reads": kind.reads,
        "options": figures[LENGTHS[0]]["options"],
        "formulas": figures[LENGTHS[0]]["cost"],
        "mask": drawn.mask and ["".join(".#"[cell] for cell in row) for row in drawn.mask],
        "caption": drawn.caption,
        "prefill": [figures[n]["at"]["prefill"] for n in LENGTHS],
        "decode": [figures[n]["at"]["decode"] for n in LENGTHS],
        "cache": [usual.cache_bytes(figures[n], n) for n in LENGTHS],
    }
