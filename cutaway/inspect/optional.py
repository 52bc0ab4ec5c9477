"""Libraries that only some studies need."""

from __future__ import annotations

from typing import Any

from cutaway.errors import UserError

EXTRAS = {"torch": "train"}  # the extra that installs a library, where it is not research


def library(name: str) -> Any:
    """An optional library; UserError with what installs it."""
    try:
        return __import__(name)
    except ImportError:
        extra = EXTRAS.get(name, "research")
        raise UserError(f"{name} is not installed: pip install 'cutaway[{extra}]'") from None
