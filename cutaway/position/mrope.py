"""Multimodal RoPE (M-RoPE, 2409.12191): pairs of a head rotate by time, by height or by width.

A patch of an image has three coordinates. The first ``sections[0]`` pairs of a head rotate by its time, the
next by its height, the last by its width. A text token's three coordinates are equal, and M-RoPE is then
RoPE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.bounds import Natural
from cutaway.errors import UserError
from cutaway.position import rope

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.shapes import Int


@dataclass(frozen=True, kw_only=True)
class Config(rope.Config):
    """``sections``: how many pairs each coordinate rotates; together they are all pairs."""

    sections: tuple[Natural, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if sum(self.sections) != self.size // 2:
            raise UserError(
                f"position: sections {self.sections} must sum to the {self.size // 2} pairs of the head"
            )
        if self.grows:
            raise UserError(
                "position: M-RoPE has no scaling by the text's length: its coordinates are no length"
            )


def rotation(config: Config, axes: Int[Tensor, "a b t"]) -> rope.Rotation:
    """The rotation at these coordinates, one row for each section. UserError unless there are as many."""
    import torch

    if len(axes) != len(config.sections):
        raise UserError(f"position: {len(config.sections)} sections need as many axes, not {len(axes)}")

    rotary = rope.RotaryEmbedding(config)
    each = [rotary.rotation(pos) for pos in axes]
    starts = [sum(config.sections[:n]) for n in range(len(config.sections))]
    parts = [slice(start, start + size) for start, size in zip(starts, config.sections, strict=True)]
    cos = torch.cat([one.cos[..., part] for one, part in zip(each, parts, strict=True)], dim=-1)
    sin = torch.cat([one.sin[..., part] for one, part in zip(each, parts, strict=True)], dim=-1)
    return each[0]._replace(cos=cos, sin=sin)
