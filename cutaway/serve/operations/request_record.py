"""The record of one HTTP request: a line of the log, figures for Prometheus, a trace.

`RecordMiddleware` gives each request its id and record, and reports the record at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request as HTTPRequest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutaway.generate.batch.prefix_cache import cache_scope
from cutaway.generate.batch.request import Generation, Piece, ResponseStream
from cutaway.serve.api_error import ANTHROPIC_PATHS
from cutaway.serve.operations.api_keys import Tenant
from cutaway.serve.operations.metrics import Metrics

log = logging.getLogger("cutaway.serve.requests")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MOST_NAMED = 32  # ignored fields, of one request
QUIET = ("/health", "/health/live", "/health/ready", "/metrics")  # asked every few seconds: logged at debug
STEP_SECONDS = 30.0  # at most, until the step under way has ended


@dataclass
class RequestRecord:
    """One request: who asked for what, what it cost, how long its phases took. Seconds are from arrival."""

    id: str
    method: str
    path: str
    metrics: Metrics
    client: str = ""  # its address
    form: str = "/"  # the path whose API's form its answer has
    began: float = field(default_factory=time.perf_counter)
    arrived: float = field(default_factory=time.time)
    tenant: Tenant | None = None
    ends: list[Callable[[], None]] = field(default_factory=list)  # called at the end
    background: asyncio.Task[Any] | None = (
        None  # what goes on when the request is answered; its end is the end
    )
    cut_off: list[tuple[int, ResponseStream]] = field(
        default_factory=list
    )  # not counted yet, by their prompt
    model: str = ""
    status: int = 0
    error: str | None = None
    bad_key: str | None = None  # a fingerprint of an unknown key
    slot: int = 0  # llama-server's, which the request names
    prompt_only: bool = False  # no token is answered: the one that the scheduler chose does not count
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    queue_seconds: float = 0.0  # until the first of its answers started
    submitted_seconds: float | None = None  # until the first of its answers was queued
    first_token_seconds: float | None = None
    seconds: float = 0.0
    scope: bytes = field(init=False)  # its API key's: the request sees only these entries of the store
    # The client whose requests wait behind each other: its API key's name, without keys its address.
    sender: str = field(init=False)
    _read: dict[int, int] = field(default_factory=dict)  # of each prompt how many ids are counted

    def __post_init__(self) -> None:
        self.belongs_to(self.tenant)

    def belongs_to(self, tenant: Tenant | None) -> None:
        """The API key of the request is this tenant's; None: it needs none."""
        self.tenant = tenant
        self.scope = b"" if tenant is None else tenant.scope
        self.sender = f"key {tenant.name}" if tenant and tenant.scope else self.client or "unknown"

    def submitted(self) -> None:
        """Note that its answers are queued."""
        self.submitted_seconds = time.perf_counter() - self.began

    def first_token(self) -> None:
        """The first token of the first answer is there."""
        self.first_token_seconds = time.perf_counter() - self.began
        self.metrics.first_token.labels(self.model).observe(self.first_token_seconds)

    def answered(self, generation: Generation, of: int) -> None:
        """One of the answers to a prompt is complete."""
        timings, prompt, metrics = generation.timings, len(generation.prompt_ids), self.metrics
        generated = 0 if self.prompt_only else len(generation.ids)
        metrics.queue.labels(self.model).observe(timings.queue_seconds)
        metrics.generated.labels(self.model).observe(generated)
        if timings.decode_tokens:
            per_token = timings.decode_seconds / timings.decode_tokens
            metrics.per_token.labels(self.model).observe(per_token)
        if not self.generated_tokens:
            self.queue_seconds = timings.queue_seconds
        if of not in self._read:
            metrics.prompt.labels(self.model).observe(prompt)
        self._count(of, prompt, prompt - timings.prefill_tokens, generated)

    async def settle(self) -> None:
        """Count what was read and generated of answers that were stopped, once their last step is over."""
        for of, stream in self.cut_off:
            await _over(stream)
            self._count(of, stream.read, stream.cached, 0 if self.prompt_only else stream.tokens)
        self.cut_off.clear()

    def _count(self, of: int, read: int, cached: int, generated: int) -> None:
        """Count an answer; a prompt counts once for all answers to it."""
        more = max(0, read - self._read.get(of, 0))
        self._read[of] = max(read, self._read.get(of, 0))
        self.spend(more, min(cached, more), generated)

    def spend(self, prompt: int, cached: int, generated: int) -> None:
        """Count tokens, for the log and for the key."""
        self.prompt_tokens += prompt
        self.cached_tokens += cached
        self.generated_tokens += generated
        if self.tenant is not None:
            self.tenant.spend(prompt, cached, generated)

    async def end(self) -> None:
        """Wait for what goes on in the background, count what was stopped, and give back what is held."""
        if self.background is not None:
            await asyncio.wait([self.background])
        await self.settle()
        for end in self.ends:
            end()
        self.seconds = time.perf_counter() - self.began

    def fields(self) -> dict[str, Any]:
        """The fields of its line in the log; never a prompt, never a key."""
        tenant = self.tenant.name if self.tenant is not None else ""
        found = {"id": self.id, "client": self.client, "key": tenant, "bad_key": self.bad_key}
        found |= {"method": self.method, "path": self.path, "model": self.model}
        found |= {"status": self.status, "prompt": self.prompt_tokens, "cached": self.cached_tokens}
        found |= {"generated": self.generated_tokens, "queue": round(self.queue_seconds, 4)}
        first = self.first_token_seconds
        found |= {
            "first_token": first and round(first, 4),
            "total": round(self.seconds, 4),
            "error": self.error,
        }
        return {name: value for name, value in found.items() if value not in ("", None)}


async def _over(stream: ResponseStream) -> None:
    """Wait for a stream's last event, which comes with the step under way; not for ever."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def listen(event: Piece | Exception) -> None:
        if isinstance(event, Exception) or event.generation is not None:
            loop.call_soon_threadsafe(over.set)

    stream.subscribe(listen)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STEP_SECONDS):
            await over.wait()


def record_of(http: HTTPRequest) -> RequestRecord:
    """The record of a request."""
    return http.scope["record"]


def client_of(http: HTTPRequest) -> str:
    """The client whose requests wait behind each other."""
    return record_of(http).sender


def key_of(http: HTTPRequest) -> bytes:
    """Whose entries of the store a request may see."""
    return record_of(http).scope


@dataclass(frozen=True)
class Caller:
    """What the scheduler knows of a request's sender: fields of its Request."""

    client: str
    priority: int
    cache_scope: bytes  # of the requests that this one may share the prefix cache with


def caller_of(http: HTTPRequest, salt: str | None) -> Caller:
    """The sender of a request, with a prefix cache of its API key and salt alone."""
    record = record_of(http)
    priority = 0 if record.tenant is None else record.tenant.priority
    return Caller(record.sender, priority, cache_scope(record.scope, salt))


def form_of(scope: Scope) -> str:
    """The path whose API's form a response has. Anthropic's clients ask for models on the path of OpenAI's,
    and name their version.
    """
    path: str = scope["path"]
    names_version = any(name == b"anthropic-version" for name, _ in scope["headers"])
    return "/v1/messages" if names_version and path.startswith(("/v1/models", "/models")) else path


class RecordMiddleware:
    """ASGI middleware: gives each request an id and a record, and reports the record at its end. The metrics
    count fields that were not used, the ``ignorable`` ones by name. No new requests should be sent to a
    server that is ``stopping``; answers in the ``background`` go on when their request is answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        stopping: threading.Event,
        background: set[asyncio.Task[None]],
        trace: Callable[[RequestRecord, Headers], None] | None = None,
        ignorable: Container[str] = (),
    ) -> None:
        self.app, self.metrics, self.trace, self.ignorable = app, metrics, trace, ignorable
        self.stopping, self.background = stopping, background

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        id = asked if re.fullmatch(r"[\w.:-]{1,128}", asked, re.ASCII) else uuid.uuid4().hex
        client = scope["client"][0] if scope.get("client") else ""
        record = scope["record"] = RequestRecord(id, scope["method"], "other", self.metrics, client)
        record.form = form_of(scope)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                shown = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    shown.setdefault(name, value)
                shown.update(self._headers(record, inner.get("ignored")))
            elif scope["method"] == "HEAD":  # answered as GET without the body, as load balancers need
                message = dict(message, body=b"")
            await send(message)

        inner = dict(scope, method="GET") if scope["method"] == "HEAD" else scope
        try:
            await self.app(inner, receive, watched)
        finally:
            record.path = getattr(scope.get("route"), "path", "other")  # the pattern: bounded in number
            if record.background is None:
                await record.end()
                self._report(record, headers, "request")
            else:
                record.seconds = time.perf_counter() - record.began
                log.info("request", extra={"fields": record.fields()})
                ending = asyncio.create_task(self._end_later(record, headers))
                self.background.add(ending)
                ending.add_done_callback(self.background.discard)

    def _headers(self, record: RequestRecord, ignored: Iterable[str] | None) -> dict[str, str]:
        """What every response tells: the request's id, and its key's quotas."""
        anthropic = record.form.startswith(ANTHROPIC_PATHS)
        found = {"x-request-id": record.id} | ({"request-id": record.id} if anthropic else {})
        if self.stopping.is_set():  # a proxy keeps no connection to a socket that soon closes
            found["connection"] = "close"
        if ignored:
            found |= self._ignored(ignored)
        if record.tenant is not None:
            found |= record.tenant.headers(anthropic)
        return found

    def _ignored(self, fields: Iterable[str]) -> dict[str, str]:
        """Which fields of the request were not used, for the response's head; the metrics count them."""
        names = [name for name in fields if re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII)][:MOST_NAMED]
        for name in names:
            self.metrics.ignored.labels(name if name in self.ignorable else "other").inc()
        return {"x-cutaway-ignored": ", ".join(names)} if names else {}

    async def _end_later(self, record: RequestRecord, headers: Headers) -> None:
        await record.end()
        self._report(record, headers, "background answer")

    def _report(self, record: RequestRecord, headers: Headers, what: str) -> None:
        """Tell the log, the metrics and the tracing of a request that has ended."""
        self.metrics.requests.labels(record.path, str(record.status or 500), record.model).inc()
        self.metrics.seconds.labels(record.path, record.model).observe(record.seconds)
        level = logging.DEBUG if record.path in QUIET else logging.INFO
        log.log(level, what, extra={"fields": record.fields()})
        if self.trace is not None and level == logging.INFO:
            self.trace(record, headers)
