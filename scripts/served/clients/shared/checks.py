"""What the Python clients share: the server's address, what is asked of it, and how a check is printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, Field

url = sys.argv[1]
model, home = "smollm2", os.environ["CLIENT_HOME"]
hello: Any = [{"role": "user", "content": "Say hello."}]
digit = {"type": "integer", "minimum": 0, "maximum": 9}
schema: Any = {
    "type": "object",
    "properties": {"a": digit, "b": digit},
    "required": ["a", "b"],
}
tool: Any = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": schema}}


def add(a: int, b: int) -> int:
    """Adds two whole numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


class Colour(BaseModel):
    """What a structured answer has: a few tokens, whatever a small model would like to write."""

    name: Literal["red", "green", "blue"]
    red: int = Field(ge=0, le=255)


def check(name: str, work: Callable[[], Any]) -> None:
    """Print whether the work gives an answer."""
    try:
        assert work(), "the answer is empty"
        why = None
    except Exception as error:
        why = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
    print("check", json.dumps([name, why]), flush=True)
