"""Tools of MCP servers, by the official client (`mcp` 1.x or 2.x): a command on stdio, or an HTTP address.

    with connect("npx some-server") as server, connect("http://127.0.0.1:8000/mcp") as other:
        lm.agent([*server.tools, *other.tools])

Names and descriptions are a stranger's text. They are read as text, limited in length and number, and pinned
by the hash of name, description and schema. A server may change tools after it is trusted, or add some:
``changed`` and ``new`` name those that are not what they were at the last ``accept``. A command gets a small
environment, without the caller's secrets.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shlex
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import CancelledError as Cancelled
from concurrent.futures import Future
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

from cutaway import store
from cutaway.agent.tool import NAME, Tool, ToolError
from cutaway.errors import OperationalError, UserError, escaped, quoted
from cutaway.extras import need
from cutaway.store.files import write_file
from cutaway.store.reading import parsed

MOST_PAGES = 32  # of a server's list of tools
MOST_TOOLS = 128
MOST_CHARACTERS = 8192  # of a tool's description and schema
WAIT_SECONDS = 30.0  # for a connection, and for the list


class Server:
    """A connection to one server. A context manager; ``close`` ends it and the command's process."""

    def __init__(self, address: str, *, seconds: float = 60.0) -> None:
        self.address, self.seconds = address, seconds
        self.refused: list[str] = []  # tools that are left out, and why
        self._stop = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None
        self._ready: Future[list[tuple[Any, ...]]] = Future()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        try:
            listed = self._ready.result(WAIT_SECONDS)
        except BaseException as error:
            self.close()
            raise self._worded(error) from None
        self.tools = tuple(tool for one in listed if (tool := self._tool(*one)) is not None)
        known = _accepted().get(address)
        pinned = known if isinstance(known, dict) else {}
        names = [tool.name for tool in self.tools if pinned.get(tool.name) != fingerprint(tool)]
        self.changed = [name for name in names if name in pinned]
        self.new = [name for name in names if name not in pinned and known is not None]

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        for end in (self._stop.set, lambda: self._task and self._task.cancel()):
            if self._thread.is_alive() and self._task is not None:
                self._loop.call_soon_threadsafe(end)
                self._thread.join(5)

    def accept(self) -> None:
        """Remember the tools as they are now: from here on they are those that were trusted."""
        known = _accepted()
        known[self.address] = {tool.name: fingerprint(tool) for tool in self.tools}
        store.home().mkdir(parents=True, exist_ok=True)
        write_file(_path(), json.dumps(known, indent=1))

    def _serve(self) -> None:
        try:
            asyncio.run(self._connected())
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)

    async def _connected(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        async with _session(self.address) as self._session:
            try:
                listed = await self._list()
            except OperationalError as error:  # outside of the groups that the client makes of errors
                self._ready.set_exception(error)
                return
            self._ready.set_result(listed)
            await self._stop.wait()

    async def _list(self) -> list[tuple[Any, ...]]:
        """Name, description and schema of all tools. OperationalError for a list that does not end."""
        found: list[tuple[Any, ...]] = []
        cursor = None
        for _ in range(MOST_PAGES):
            page, cursor = await self._session.list(cursor)
            found += page
            if len(found) > MOST_TOOLS:
                raise OperationalError(f"{self.address}: lists more than {MOST_TOOLS} tools")
            if cursor is None:
                return found
        raise OperationalError(f"{self.address}: its list of tools does not end")

    def _tool(self, name: Any, description: Any, schema: Any) -> Tool | None:
        size = len(str(description or "")) + len(json.dumps(schema, default=str))
        if NAME.fullmatch(str(name)) is None:
            self.refused.append(f"{quoted(name)}: no name of letters, digits, _ . and -")
        elif size > MOST_CHARACTERS:
            self.refused.append(f"{name}: described in more than {MOST_CHARACTERS:,} characters")
        elif not isinstance(schema, dict) or schema.get("type") != "object":
            self.refused.append(f"{name}: its schema is none of an object")
        else:
            return Tool(name, str(description or ""), schema, lambda given: self._call(name, given))
        return None

    def _call(self, name: str, arguments: dict[str, Any]) -> str:
        """A call's result. Raises ToolError where it fails, or where the server is gone."""
        if not self._thread.is_alive():
            raise ToolError(f"{self.address}: the connection is closed")
        future = asyncio.run_coroutine_threadsafe(self._session.call(name, arguments), self._loop)
        try:
            text, failed = future.result(self.seconds)
        except Exception as error:
            future.cancel()
            raise ToolError(str(self._worded(error))) from None
        if failed:
            raise ToolError(text)
        return text

    def _worded(self, error: BaseException) -> BaseException:
        """An error, also one inside a group, as one sentence. Ctrl-C is raised again."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, KeyboardInterrupt | UserError | OperationalError):
            return error
        late = isinstance(error, TimeoutError | Cancelled)
        words = (
            "did not answer in time"
            if late
            else escaped(f"{type(error).__name__}: {error}".removesuffix(": "))[:400]
        )
        return OperationalError(f"{self.address}: {words}")


def connect(address: str, *, seconds: float = 60.0) -> Server:
    """A server by its command line, such as "python server.py", or its address (http://...).

    ``seconds`` bounds each call. Raises OperationalError where it cannot be reached, UserError without the
    `mcp` package.
    """
    need("an MCP server", "mcp")
    if not address.strip():
        raise UserError("an MCP server is a command line or an address such as http://127.0.0.1:8000/mcp")
    return Server(address, seconds=seconds)


def fingerprint(tool: Tool) -> str:
    """The SHA-256 of what a model reads of a tool."""
    seen = json.dumps([tool.name, tool.description, tool.parameters], sort_keys=True)
    return hashlib.sha256(seen.encode("utf-8", "surrogatepass")).hexdigest()


def _path() -> Any:
    return store.home() / "mcp-tools.json"


def _accepted() -> dict[str, Any]:
    """The fingerprints of tools by name, by server. UserError where the file of them was damaged: to go on
    without it would trust every server anew.
    """
    return parsed(_path()) if _path().exists() else {}


class _Session:
    """One open session of either version of the client: pages of tools, and calls, as plain data."""

    def __init__(self, client: Any, names: tuple[str, str, str]) -> None:
        self.client, (self.schema, self.cursor, self.failed) = client, names

    async def list(self, cursor: str | None) -> tuple[list[tuple[Any, ...]], str | None]:
        page = await self.client.list_tools(cursor=cursor)
        found = [(tool.name, tool.description, getattr(tool, self.schema)) for tool in page.tools]
        return found, getattr(page, self.cursor)

    async def call(self, name: str, arguments: dict[str, Any]) -> tuple[str, bool]:
        result = await self.client.call_tool(name, arguments)
        return _text(result.content), bool(getattr(result, self.failed))


@asynccontextmanager
async def _session(address: str) -> AsyncIterator[_Session]:
    """An initialised session."""
    import mcp

    remote = address.startswith(("http://", "https://"))
    command, *words = [""] if remote else shlex.split(address)
    if hasattr(mcp, "Client"):
        server: Any = address if remote else mcp.StdioServerParameters(command=command, args=words)
        async with mcp.Client(server) as client:
            yield _Session(client, ("input_schema", "next_cursor", "is_error"))
        return
    if remote:
        from mcp.client import streamable_http

        names = ("streamable_http_client", "streamablehttp_client")  # newer and older 1.x
        transport: Any = next(getattr(streamable_http, n) for n in names if hasattr(streamable_http, n))(
            address
        )
    else:
        from mcp.client.stdio import stdio_client

        transport = stdio_client(mcp.StdioServerParameters(command=command, args=words))
    async with transport as streams, mcp.ClientSession(*streams[:2]) as session:
        await session.initialize()
        yield _Session(session, ("inputSchema", "nextCursor", "isError"))


def _text(parts: Sequence[Any]) -> str:
    """The texts of a result; anything else is named."""
    return "\n".join(
        part.text if getattr(part, "type", "") == "text" else f"[{getattr(part, 'type', 'unknown')}]"
        for part in parts
    )
