"""Libraries that only some studies need."""

from __future__ import annotations

from typing import Any

from cutaway.errors import UserError
from cutaway.extras import install


def library(name: str) -> Any:
    """An optional library; UserError with what installs it."""
    try:
        return __import__(name)
    except ImportError:
        raise UserError(f"{name} is not installed: {install('research')}") from None
