"""Python in the sandbox (``cutaway/sandbox``): no network, no files but its own, bounded time and memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cutaway import sandbox
from cutaway.agent.built_in_tools import Reader
from cutaway.agent.tool import Tool, ToolError, from_function
from cutaway.errors import visible

ERROR = 2000  # characters of an error, from its end


def make(root: Path, reader: Reader, unsafe: bool = False) -> Tool:
    """The tool. UserError where a layer of the sandbox does not hold, unless ``unsafe`` allows that."""
    outcome = sandbox.run("", unsafe=unsafe)

    def python(code: str) -> str:
        """Run Python 3 code and give what it prints. Nothing is kept between calls.

        :param code: A program that prints its result.
        """
        return shown(sandbox.run(code, unsafe=unsafe))

    missing = "".join(
        f"; UNSAFE, {name} does not hold ({why}): {sandbox.OPEN[name]}"
        for name, why in outcome.missing.items()
    )
    note = f"sandboxed by {', '.join(outcome.layers) or 'nothing'}{missing}"
    return replace(from_function(python), note=note)


def shown(outcome: sandbox.Outcome) -> str:
    """What the code printed, without what a terminal would obey. ToolError with the error where it failed."""
    if outcome.ended == "finished":
        return visible(outcome.output) or "The program printed nothing: print the result."
    texts = [outcome.output, outcome.error[-ERROR:], outcome.ended]
    raise ToolError(visible("\n".join(filter(None, texts))))
