"""The tools of `cutaway chat`: which there are, and that each call is shown before it runs."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cutaway.commands.console import agrees, interactive, model_path, note
from cutaway.commands.options import Flag, Words
from cutaway.errors import UserError, escaped

if TYPE_CHECKING:
    from cutaway.agent.loop import Agent
    from cutaway.agent.mcp import Server
    from cutaway.generate.tool_calls.parser import Call

SHOWN = 300  # characters of a result


@Parameter(name="*")
@dataclass(frozen=True)
class ToolOptions:
    """Which tools a model may call, and under which limits."""

    tools: Annotated[
        str | None,
        Parameter(help="What the model may call: calculator,clock,python,search,read or FILE.py:FUNCTION."),
    ] = None
    mcp: Annotated[Words, Parameter(help="An MCP server, by its command or address; again for more.")] = ()
    root: Annotated[Path, Parameter(help="The folder that search and read may see.")] = Path()
    max_calls: Annotated[int, Parameter(help="Calls for one answer at most.")] = 8
    yes: Annotated[Flag, Parameter(help="Run calls without asking.")] = False
    unsafe: Annotated[
        Flag, Parameter(help="Run the python tool though a layer of its sandbox is missing here.")
    ] = False

    @property
    def given(self) -> bool:
        """Whether there are any."""
        return bool(self.tools or self.mcp)

    @contextmanager
    def agent(self, lm: Any, system: str | None, options: dict[str, Any]) -> Iterator["Agent"]:
        """The model with its tools; servers are connected until the block ends."""
        from contextlib import ExitStack

        from cutaway.agent.loop import Agent, Limits
        from cutaway.agent.mcp import connect
        from cutaway.agent.tool import Tool

        tools: list[Tool] = [
            _tool(name.strip(), self.root, self.unsafe) for name in (self.tools or "").split(",") if name
        ]
        limits = Limits(self.max_calls)
        with ExitStack() as stack:
            for address in self.mcp:
                server = stack.enter_context(connect(address))
                tools += _trusted(server, self.yes)
            for tool in tools:
                note(f"Tool {tool.name}: {tool.note or tool.description.partition(chr(10))[0]}")
            agent = Agent(lm, tools, system, limits, confirm(self.yes), options)
            for warning in agent.warnings:
                note(warning)
            yield agent


def _tool(name: str, root: Path, unsafe: bool) -> Any:
    from cutaway.agent.built_in_tools import built_in
    from cutaway.agent.tool import from_function
    from cutaway.data.tasks import function_of

    file, colon, function = name.rpartition(":")
    if colon and file.endswith(".py"):
        return from_function(function_of(file, function))
    return built_in(name, root, _encoder, unsafe=unsafe)


@cache
def _encoder() -> Any:
    from cutaway import lm
    from cutaway.agent.tools.search import MODEL

    return lm.load(model_path(MODEL))


def _trusted(server: "Server", yes: bool) -> list[Any]:
    """The tools of a server; those that changed or came since it was trusted, after the user agrees."""
    for refused in server.refused:
        note(f"{server.address}: left out {refused}")
    others = dict.fromkeys(server.new, "is new since")
    others |= dict.fromkeys(server.changed, "is not what it was when")
    for tool in server.tools:
        if tool.name in others:
            note(f"{server.address}: {tool.name} {others[tool.name]} you last used it:")
            note(escaped(f"  {tool.description} {json.dumps(tool.parameters, ensure_ascii=False)}"))
    if others and not yes and not (interactive() and agrees("Use these tools?")):
        note(f"{server.address}: {', '.join(others)} left out; --yes accepts them.")
        return [tool for tool in server.tools if tool.name not in others]
    server.accept()
    return list(server.tools)


def confirm(yes: bool) -> Callable[["Call"], bool]:
    """Shows a call, and asks whether it may run; without a terminal it may not."""

    def asked(call: "Call") -> bool:
        note(f"[{call.name} {json.dumps(call.object, ensure_ascii=False)}]")
        if yes:
            return True
        if not interactive():
            note("[not run: --yes allows calls without a terminal]")
            return False
        return agrees("Run it?")

    return asked


def shown(text: str) -> str:
    """A result on one line."""
    line = " ".join(text.split())
    return f"[= {line[:SHOWN]}{'...' if len(line) > SHOWN else ''}]"


def checked(options: ToolOptions) -> ToolOptions:
    """The same. UserError for tool options without a tool, before a model is loaded."""
    if not options.given and (options.yes or options.max_calls != ToolOptions.max_calls):
        raise UserError("--yes and --max-calls are about tools: name some by --tools or --mcp")
    if options.unsafe and "python" not in map(str.strip, (options.tools or "").split(",")):
        raise UserError("--unsafe is about the python tool: name it by --tools, or leave --unsafe out")
    if options.max_calls < 1:
        raise UserError(f"--max-calls is {options.max_calls}: give a number from 1 up")
    return options


NO_TOOLS = ToolOptions()
