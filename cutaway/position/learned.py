"""Learned positions: one trained vector for each place, added to the token's embedding (1705.03122, GPT-2)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """``size``: how many places the table has; a position past it does not exist."""

    size: int
