"""Gated attention (2505.06708) behind a window (2004.05150): the last ``window`` tokens alone, times gates.

Trinity and Laguna have three such layers to one gated layer that sees all.
"""

from dataclasses import dataclass

from cutaway.attention import gated, local

COST = local.COST
USUAL = local.USUAL


@dataclass(frozen=True, kw_only=True)
class Config(gated.Config, local.Config):
    """Gated heads behind a causal window: j > i - window."""
