"""What is known of one HTTP request when it ends: a line of the log, figures for Prometheus, a trace."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request as HTTPRequest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutaway.generate.batch.request import Generation, ResponseStream
from cutaway.serve.operations.api_keys import Tenant
from cutaway.serve.operations.metrics import Metrics
from cutaway.serve.operations.tracing import Tracing

log = logging.getLogger("cutaway.serve.requests")
QUIET = ("/health", "/health/live", "/health/ready", "/metrics")  # asked every few seconds: logged at debug


@dataclass
class RequestRecord:
    """One request: who asked for what, what it cost, how long its phases took. Seconds are from arrival."""

    id: str
    method: str
    path: str
    began: float = field(default_factory=time.perf_counter)
    arrived: float = field(default_factory=time.time)
    tenant: Tenant | None = None
    ends: list[Callable[[], None]] = field(default_factory=list)  # called at the end
    model: str = ""
    status: int = 0
    error: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    queue_seconds: float = 0.0  # until the first of its answers started
    submitted_seconds: float | None = None  # until the first of its answers was queued
    first_token_seconds: float | None = None
    seconds: float = 0.0

    def submitted(self) -> None:
        """Its answers are queued."""
        self.submitted_seconds = time.perf_counter() - self.began

    def first_token(self, metrics: Metrics) -> None:
        """The first token of the first answer is there."""
        if self.first_token_seconds is None:
            self.first_token_seconds = time.perf_counter() - self.began
            metrics.first_token.observe(self.first_token_seconds)

    def answered(self, generation: Generation, shares_prompt: bool, metrics: Metrics) -> None:
        """One of its answers is complete; the prompt counts once for all answers to it."""
        timings, prompt = generation.timings, len(generation.prompt_ids)
        metrics.queue.observe(timings.queue_seconds)
        metrics.generated.observe(len(generation.ids))
        if timings.decode_tokens:
            metrics.per_token.observe(timings.decode_seconds / timings.decode_tokens)
        if not self.generated_tokens:
            self.queue_seconds = timings.queue_seconds
        if not shares_prompt:
            metrics.prompt.observe(prompt)
        cached = prompt - timings.prefill_tokens
        self.spend(*(0, 0) if shares_prompt else (prompt, cached), len(generation.ids))

    def cut_off(self, stream: ResponseStream) -> None:
        """An answer was stopped: what was read and generated until then counts."""
        self.spend(len(stream.request.ids), 0, stream.tokens)

    def spend(self, prompt: int, cached: int, generated: int) -> None:
        """Count tokens, for the log and for the key."""
        self.prompt_tokens += prompt
        self.cached_tokens += cached
        self.generated_tokens += generated
        if self.tenant is not None:
            self.tenant.spend(prompt, cached, generated)

    def fields(self) -> dict[str, Any]:
        """The fields of its line in the log; never a prompt, never a key."""
        tenant = self.tenant.name if self.tenant is not None else ""
        found = {"id": self.id, "key": tenant, "method": self.method, "path": self.path, "model": self.model}
        found |= {"status": self.status, "prompt": self.prompt_tokens, "cached": self.cached_tokens}
        found |= {"generated": self.generated_tokens, "queue": round(self.queue_seconds, 4)}
        first = self.first_token_seconds
        found |= {
            "first_token": first and round(first, 4),
            "total": round(self.seconds, 4),
            "error": self.error,
        }
        return {name: value for name, value in found.items() if value not in ("", None)}


def record_of(http: HTTPRequest) -> RequestRecord:
    """The record of a request."""
    return http.scope["record"]


class RecordMiddleware:
    """ASGI middleware: gives each request an id and a record, and reports the record at its end."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self.app, self.metrics, self.tracing = app, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        id = asked if re.fullmatch(r"[\w.:-]{1,128}", asked, re.ASCII) else uuid.uuid4().hex
        record = scope["record"] = RequestRecord(id, scope["method"], "other")

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = id
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            for end in record.ends:
                end()
            record.path = getattr(scope.get("route"), "path", "other")  # the pattern: bounded in number
            record.seconds = time.perf_counter() - record.began
            self.metrics.requests.labels(record.path, str(record.status or 500)).inc()
            self.metrics.seconds.labels(record.path).observe(record.seconds)
            level = logging.DEBUG if record.path in QUIET else logging.INFO
            log.log(level, "request", extra={"fields": record.fields()})
            if self.tracing is not None and level == logging.INFO:
                self.tracing.report(record, headers)
