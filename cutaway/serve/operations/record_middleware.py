"""ASGI middleware that gives each request an id and a record, and reports the record at its end."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Container, Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutaway.serve.api_error import is_anthropic
from cutaway.serve.operations import rate_limits
from cutaway.serve.operations.models import Models
from cutaway.serve.operations.request_record import RequestRecord
from cutaway.serve.operations.tracing import Tracing

log = logging.getLogger("cutaway.serve.requests")
MOST_NAMED = 32  # ignored fields, of one request
QUIET = ("/health", "/health/live", "/health/ready", "/metrics")  # asked every few seconds: logged at debug


class RecordMiddleware:
    """ASGI middleware: gives each request an id and a record, and reports the record at its end. The metrics
    count fields that were not used, the ``ignorable`` ones by name.
    """

    def __init__(
        self,
        app: ASGIApp,
        models: Models,
        tracing: Tracing | None = None,
        ignorable: Container[str] = (),
    ) -> None:
        self.app, self.models, self.tracing, self.ignorable = app, models, tracing, ignorable
        self.metrics = models.default.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        id = asked if re.fullmatch(r"[\w.:-]{1,128}", asked, re.ASCII) else uuid.uuid4().hex
        client = scope["client"][0] if scope.get("client") else ""
        record = scope["record"] = RequestRecord(id, scope["method"], "other", self.metrics, client)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message).update(self._headers(record, inner))
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
                self.models.background.add(ending)
                ending.add_done_callback(self.models.background.discard)

    def _headers(self, record: RequestRecord, scope: Scope) -> dict[str, str]:
        """What every response tells: the request's id, and its key's quotas."""
        anthropic = is_anthropic(scope)
        found = {"x-request-id": record.id} | ({"request-id": record.id} if anthropic else {})
        if self.models.stopping.is_set():  # a proxy keeps no connection to a socket that soon closes
            found["connection"] = "close"
        if scope.get("ignored"):
            found |= self._ignored(scope["ignored"])
        if record.tenant is not None:
            found |= rate_limits.headers(record.tenant, anthropic)
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
        if self.tracing is not None and level == logging.INFO:
            self.tracing.report(record, headers)
