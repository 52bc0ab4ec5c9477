"""From the engine's thread to a request's coroutine: pieces as they come, an end to the work if nobody waits.

The engine's thread hands each event to the event loop (loop_bridge.py), where one queue joins a request's
answers in the order in which their tokens were chosen. When the client goes away, or the time is up, every
answer is cancelled, which the engine sees before its next step.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.scheduler import Request, ResponseStream
from cutaway.generate.decode import Piece
from cutaway.serve.api_error import APIError, wrong
from cutaway.serve.service import Service

log = logging.getLogger("cutaway.serve")


class Asked:
    """Some answers asked of the engine together: iterate for (which, piece). Made in a ``with``, at whose end
    whatever is still under way is cancelled.
    """

    def __init__(self, service: Service, requests: Iterable[Request]) -> None:
        self.service = service
        self.streams: list[ResponseStream] = []
        try:
            for request in requests:
                self.streams.append(service.writer_of(request).submit(request))
        except BaseException:
            self.close()
            raise
        self.began = time.perf_counter()

    def close(self) -> None:
        """Stops what is still under way."""
        for stream in self.streams:
            if not stream.ended:
                stream.cancel()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        queue: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
        for i, stream in enumerate(self.streams):
            stream.subscribe(partial(self._tell, queue, i))
        self.service.post.deliver()
        going, first = len(self.streams), True
        deadline = self.began + self.service.limits.request_seconds
        while going:
            i, event = await self._next(queue, deadline)
            if first:
                self.service.metrics.first_token.observe(time.perf_counter() - self.began)
                first = False
            if isinstance(event, Exception):
                raise event
            going -= event.generation is not None
            yield i, event

    def _tell(self, queue: asyncio.Queue[Any], i: int, event: Any) -> None:
        self.service.post.put(queue, (i, event))

    async def _next(self, queue: asyncio.Queue[Any], deadline: float) -> tuple[int, Piece | Exception]:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.perf_counter())):
                return await queue.get()
        except TimeoutError:
            seconds = self.service.limits.request_seconds
            raise APIError(
                504, f"The answer took more than {seconds:g} seconds", type="server_error", code="too_slow"
            ) from None


async def while_there(request: HTTPRequest, work: Coroutine[Any, Any, Response]) -> Response:
    """The work's response, unless the client goes away first: then the work is cancelled."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((doing, leaving), return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        return Response(status_code=499)  # nobody reads it
    finally:
        for task in (doing, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(request: HTTPRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def events(
    asked: Asked, chunks: AsyncIterator[dict[str, Any]], timeout: float, *, named: bool = False
) -> Response:
    """Server-sent events: each chunk as JSON, an error where one comes up, then ``[DONE]``; with ``named``,
    each under its own type and no ``[DONE]``, as OpenAI's Responses are told.
    """
    from sse_starlette.sse import AppStatus, EventSourceResponse

    AppStatus.disable_automatic_graceful_drain()  # answers under way are finished before the server stops

    async def told() -> AsyncIterator[dict[str, str]]:
        try:
            async for chunk in chunks:
                yield _event(chunk, named)
        except Exception as problem:
            if wrong(problem).status == 500:
                log.exception("A request failed")
            body = wrong(problem).body
            yield _event({"type": "error", **body["error"]} if named else body, named)
            return
        finally:
            asked.close()
        if not named:
            yield {"data": "[DONE]"}

    return EventSourceResponse(told(), sep="\n", send_timeout=timeout, headers={"X-Accel-Buffering": "no"})


def _event(chunk: dict[str, Any], named: bool) -> dict[str, str]:
    data = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
    return {"event": chunk["type"], "data": data} if named else {"data": data}


def tokens_of(pieces: Sequence[Piece]) -> int:
    """How many tokens these pieces are."""
    return sum(piece.id is not None for piece in pieces)


def client_of(request: HTTPRequest) -> str:
    """Whose requests wait behind each other."""
    return request.client.host if request.client else ""
