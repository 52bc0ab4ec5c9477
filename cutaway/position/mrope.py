"""Multimodal rotary position (M-RoPE, 2409.12191): time, height and width share the pairs of a head among
them.

A piece of an image stands at three coordinates. The first ``sections[0]`` pairs of a head turn by its time,
the next by its height, the last by its width. A text token's three coordinates are equal, and M-RoPE is
then RoPE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.errors import UserError
from cutaway.position import rope

if TYPE_CHECKING:
    from torch import Tensor

    from cutaway.shapes import Int


@dataclass(frozen=True, kw_only=True)
class Config(rope.Config):
    """``sections``: how many pairs each coordinate turns; together they are all pairs."""

    sections: tuple[int, ...]

    def __post_init__(self) -> None:
        if sum(self.sections) != self.size // 2:
            raise UserError(
                f"position: sections {self.sections} must share the {self.size // 2} pairs of {self.size}"
            )
        if self.grows:
            raise UserError(
                "position: M-RoPE cannot be scaled by a text's length: its coordinates are no length"
            )


def rotation(config: Config, axes: Int[Tensor, "a b t"]) -> rope.Rotation:
    """How tokens at these coordinates are turned, one row of positions for each section. UserError unless
    there are as many.
    """
    import torch

    if len(axes) != len(config.sections):
        raise UserError(f"position: {len(config.sections)} sections turn by as many axes, not by {len(axes)}")

    turn = rope.Turn(config)
    turned = [turn.rotation(pos) for pos in axes]
    starts = [sum(config.sections[:n]) for n in range(len(config.sections))]
    parts = [slice(start, start + size) for start, size in zip(starts, config.sections, strict=True)]
    cos = torch.cat([one.cos[..., part] for one, part in zip(turned, parts, strict=True)], dim=-1)
    sin = torch.cat([one.sin[..., part] for one, part in zip(turned, parts, strict=True)], dim=-1)
    return turned[0]._replace(cos=cos, sin=sin)
