"""Python in the sandbox (``cutaway/sandbox``): no network, no files but its own, bounded time and memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cutaway import sandbox
from cutaway.agent.tools import Reader, Tool, ToolError, from_function


def make(root: Path, reader: Reader) -> Tool:
    """The tool. UserError where the kernel gives no boundary."""
    outcome = sandbox.run("")
    missing = "".join(f"; {name} is missing: {why}" for name, why in outcome.missing.items())
    return replace(from_function(python), note=f"sandboxed by {', '.join(outcome.layers)}{missing}")


def python(code: str) -> str:
    """Run Python 3 code and give what it prints. Nothing is kept between calls.

    :param code: A program that prints its result.
    """
    outcome = sandbox.run(code)
    if outcome.ended == "finished":
        return outcome.output or "The program printed nothing: print the result."
    raise ToolError("\n".join(filter(None, [outcome.output, outcome.error[-2000:], outcome.ended])))
