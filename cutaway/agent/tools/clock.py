"""The date and the time."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cutaway.agent.built_in_tools import Reader
from cutaway.agent.tool import Tool, ToolError, from_function


def make(root: Path, reader: Reader) -> Tool:
    """The tool."""
    return from_function(clock)


def clock(zone: str = "UTC") -> str:
    """The date, the weekday and the time now.

    :param zone: A time zone, such as Europe/Zurich.
    """
    try:
        now = datetime.now(ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ToolError(f"there is no time zone {zone[:60]!r}: use one such as Europe/Zurich") from None
    return f"{now:%A}, {now.isoformat(timespec='seconds')} {zone}"
