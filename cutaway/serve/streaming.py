"""Stream answers from the scheduler's thread to a request; cancel them when the client disconnects.

The scheduler's thread hands events to the event loop, where one queue merges a request's answers in the order
in which their tokens were chosen. When the client disconnects, or the time is up, every answer is cancelled,
which the scheduler sees before its next step.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from sse_starlette.sse import AppStatus, EventSourceResponse
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response, StreamingResponse

from cutaway.generate.batch.request import Generation, Piece, Request, ResponseStream
from cutaway.serve.api_error import timeout_error, to_api_error
from cutaway.serve.operations.request_record import RequestRecord
from cutaway.serve.service import Service

AppStatus.disable_automatic_graceful_drain()  # or a signal would end every stream, in the stop's delay too
log = logging.getLogger("cutaway.serve")
Wire = Literal["data", "named", "lines"]
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode  # made once: for every token


CUT_OFF = "the answer was cut off at its most tokens, and may not be whole"
Again = Callable[[int, Generation, int], Request | None]


class MergedStreams:
    """The answers of one HTTP request: iterate for (which, piece). ``close`` cancels unfinished ones.

    ``again(which, generation, sample)`` looks at each answer that ended: while it returns a request, that is
    answered instead. The pieces of an answer then come when it is final. ``warnings``, of answers that are
    held to a form, gets a sentence where one is cut off. Each prompt has so many ``choices`` in a row.
    """

    def __init__(
        self,
        service: Service,
        requests: Iterable[Request],
        record: RequestRecord,
        again: Again | None = None,
        warnings: list[str] | None = None,
        choices: int = 1,
    ) -> None:
        self.choices = choices
        self.service, self.record, self.again, self.warnings = service, record, again, warnings
        self.streams: list[ResponseStream] = []
        self._answered: set[int] = set()  # streams whose answers are counted
        self._timer: asyncio.TimerHandle | None = None
        assert service.scheduler is not None  # or there were no requests
        self.submit = service.scheduler.submit
        try:
            for request in requests:
                self.streams.append(self.submit(request))
        except BaseException:
            self.close()
            raise
        record.submitted()
        self.began = time.perf_counter()

    def close(self) -> None:
        """Cancel what is not finished; what it read and generated counts (RequestRecord.settle)."""
        if self._timer is not None:
            self._timer.cancel()
        for i, stream in enumerate(self.streams):
            if i not in self._answered:
                self._answered.add(i)
                stream.cancel()
                self.record.cut_off.append((i // self.choices, stream))
                if self.service.slots is not None:
                    self.service.slots.stopped(self.record.scope, self.record.slot, stream)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        queue: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
        bridge = self.service.bridge
        held: list[list[Piece]] = [[] for _ in self.streams]
        samples = [0] * len(self.streams)
        for i, stream in enumerate(self.streams):
            stream.subscribe(bridge.listener(queue, i))
        bridge.deliver()
        unfinished, client = len(self.streams), self.streams[0].request.client
        seconds = self.service.limits.request_seconds
        left = max(0.0, self.began + seconds - time.perf_counter())

        def late() -> None:
            queue.put_nowait((0, timeout_error(seconds)))

        self._timer = asyncio.get_running_loop().call_later(left, late)
        while unfinished:
            i, event = await queue.get()
            if isinstance(event, Exception):
                raise event
            if self.record.first_token_seconds is None:
                self.record.first_token()
            if event.generation is not None:
                self.service.finished.append(time.perf_counter())
                self._answered.add(i)
                self.record.answered(event.generation, i // self.choices)
                if self.service.slots is not None:
                    request = self.streams[i].request
                    self.service.slots.answered(
                        self.record.scope, self.record.slot, request, event.generation
                    )
                if self.warnings is not None and event.generation.finish_reason == "length":
                    self.warnings.append(CUT_OFF)
            if self.again is None:
                unfinished -= event.generation is not None
                yield i, event
                continue
            held[i].append(event)
            if event.generation is None:
                continue
            request = await self.service.run(client, _judged, self.again, i, event.generation, samples[i])
            if request is None:
                unfinished -= 1
                for piece in held[i]:
                    yield i, piece
                continue
            samples[i], held[i] = samples[i] + 1, []
            self.streams[i] = self.submit(request)
            self._answered.discard(i)
            self.streams[i].subscribe(bridge.listener(queue, i))
            bridge.deliver()

    async def collect(self) -> tuple[list[list[Piece]], list[Generation]]:
        """Wait for all answers: the pieces of each, and its generation."""
        pieces: list[list[Piece]] = [[] for _ in self.streams]
        async for i, piece in self:
            pieces[i].append(piece)
        return pieces, [own[-1].generation for own in pieces if own[-1].generation is not None]


def _judged(_: Service, again: Again, i: int, generation: Generation, sample: int) -> Request | None:
    return again(i, generation, sample)


async def while_connected(request: HTTPRequest, work: Awaitable[Response]) -> Response:
    """The work's response; if the client disconnects first, the work is cancelled."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return Response(status_code=499)  # the client is gone
    finally:
        for task in (working, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _disconnected(request: HTTPRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def respond(
    http: HTTPRequest, streams: MergedStreams, answer: Any, stream: bool | None, *, wire: Wire = "data"
) -> Response:
    """The response that ``answer`` makes of the streams: ``answer.chunks()`` where they are streamed, else
    ``answer.whole()``.

    On the ``wire`` a chunk is a server-sent event, which "data" ends with ``[DONE]`` and "named" gives the
    chunk's type, or a line.
    """
    if stream:
        return _streamed(streams, answer.chunks(), wire, http.url.path)
    try:
        return await while_connected(http, answer.whole())
    finally:
        streams.close()


def _streamed(
    streams: MergedStreams, chunks: AsyncIterator[dict[str, Any] | EncodedEvent], wire: Wire, path: str
) -> Response:
    async def events() -> AsyncIterator[Any]:
        try:
            async for chunk in chunks:
                yield _event(chunk, wire)
        except Exception as error:
            refusal = to_api_error(error)
            streams.record.error = refusal.code
            if refusal.status == 500:
                log.exception("A request failed")
            body = refusal.body_on(path)
            if wire == "named" and "type" not in body:
                body = {"type": "error", **body["error"]}
            yield _event(body, wire)
            return
        finally:
            streams.close()
        if wire == "data":
            yield {"data": "[DONE]"}

    headers = {"X-Accel-Buffering": "no"}
    if wire == "lines":
        return StreamingResponse(events(), headers=headers, media_type="application/x-ndjson")
    timeout = streams.service.limits.request_seconds
    return EventSourceResponse(events(), sep="\n", send_timeout=timeout, headers=headers)


@dataclass(frozen=True)
class EncodedEvent:
    """A chunk of a type that was encoded beside the event loop."""

    type: str
    data: str


def encoded_event(chunk: dict[str, Any]) -> EncodedEvent:
    """A large chunk, encoded. For threads."""
    return EncodedEvent(chunk["type"], _encode(chunk))


def _event(chunk: dict[str, Any] | EncodedEvent, wire: Wire) -> dict[str, str] | str:
    if isinstance(chunk, EncodedEvent):
        return {"event": chunk.type, "data": chunk.data}
    data = _encode(chunk)
    if wire == "lines":
        return data + "\n"
    return {"event": chunk["type"], "data": data} if wire == "named" else {"data": data}
