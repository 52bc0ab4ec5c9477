"""Authentication, limits of size and rate limits: who may ask, how much, and how fast.

A server on 127.0.0.1 is open to every program of its user, and a page in their browser is one of them. So a
request must name an expected host (DNS rebinding makes a page's own name resolve to 127.0.0.1), must not come
from another site's page unless that is allowed (``Origin``), and must say that its body is JSON, which a
browser sends across sites only after asking. With API keys (api_keys.py), only requests with one of them are
answered, and the prefix cache is separate for each.

A request costs the event loop time before it is known to be good or bad: its head, its body, the refusal. A
client that sends thousands a second, each refused at once, would hold up the streams of the others. So a
client's requests have turns while another client is there (`Pace`).
"""

from __future__ import annotations

import asyncio
import math
import re
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutaway.serve.api_error import APIError, error_response
from cutaway.serve.operations.api_keys import KeyRing, Tenant, fingerprint
from cutaway.serve.operations.request_record import form_of

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PUBLIC = ("/", "/health", "/health/live", "/health/ready", "/ping")  # without a key: page, and what watches
PAGE = "/page/"  # the page's own files, without a key
ALONE = 1.0  # seconds after which a client without a request under way is gone


@dataclass(frozen=True)
class AccessPolicy:
    """``hosts`` that a request may name (None: any), ``origins`` whose pages may ask, the API ``keys`` (none:
    no key is needed), and the path ``root_path`` under which a proxy shows the server, cut off or not.
    """

    hosts: tuple[str, ...] | None = LOOPBACK
    origins: tuple[str, ...] = ()
    keys: KeyRing = field(default_factory=KeyRing)
    root_path: str = ""
    body_bytes: int = 2 << 20
    body_seconds: float = 30.0


@dataclass
class Pace:
    """The turns of each client's requests: ``requests`` and ``bytes`` a second, after a burst of ``burst``
    seconds' worth; who would wait longer than ``most`` seconds is refused. The event loop's own.

    A request that comes sooner waits, before its body is read, which holds back its sender. A client that is
    alone is never held back.
    """

    requests: float = 100.0
    bytes: float = 16e6
    burst: float = 0.2
    most: float = 5.0
    _next: dict[str, float] = field(default_factory=dict)  # when a client's next request has its turn
    _seen: dict[str, float] = field(default_factory=dict)  # when a client was last there, in order
    _present: Counter[str] = field(default_factory=Counter)  # its requests under way

    @contextmanager
    def present(self, client: str) -> Iterator[None]:
        """A request of the client is under way."""
        self._present[client] += 1
        try:
            yield
        finally:
            self._present[client] -= 1
            self._note(client)

    async def turn(self, client: str, size: int) -> None:
        """Wait for a request's turn, whose body has ``size`` bytes. APIError where that takes too long."""
        seconds = self.wait(client, size)
        if seconds:
            await asyncio.sleep(min(seconds, self.most))
        if seconds > self.most:
            raise APIError(
                429,
                "This client asks faster than it can be answered beside others: send fewer at a time",
                type="rate_limit_error",
                code="too_fast",
                retry_after=math.ceil(seconds - self.most),
            )

    def wait(self, client: str, size: int) -> float:
        """Seconds until a request's turn, which is then taken: 0 for a client that is alone."""
        now = self._note(client)
        if len(self._seen) == 1:
            self._next.pop(client, None)
            return 0.0
        turn = max(now - self.burst, self._next.get(client, 0.0))
        if turn - now <= self.most:  # one that is refused takes no turn
            self._next[client] = turn + 1 / self.requests + size / self.bytes
        return max(0.0, turn - now)

    def _note(self, client: str) -> float:
        """A client is there, now; those are forgotten that are gone."""
        now = time.monotonic()
        self._seen.pop(client, None)
        self._seen[client] = now
        while now - self._seen[first := next(iter(self._seen))] > ALONE:
            del self._seen[first]
            if self._present[first]:
                self._seen[first] = now
            else:
                self._next.pop(first, None)
                del self._present[first]
        return now


class AuthMiddleware:
    """ASGI middleware: lets through what the policy allows, with its body read and limited."""

    def __init__(self, app: ASGIApp, policy: AccessPolicy) -> None:
        self.app, self.policy, self.pace = app, policy, Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        if self.policy.root_path and scope["path"].startswith(f"{self.policy.root_path}/"):
            scope["path"] = scope["path"].removeprefix(self.policy.root_path)
            scope["record"].form = form_of(scope)
        record, headers, refusal = scope["record"], Headers(scope=scope), None
        try:
            record.belongs_to(self._check(scope, headers))
        except APIError as error:
            refusal = error
        length = headers.get("content-length", "")
        size = int(length[:19]) if length.isdecimal() else 0
        try:
            with self.pace.present(record.sender):
                await self.pace.turn(record.sender, min(size, self.policy.body_bytes))
                if refusal is not None:
                    raise refusal
                body = b""
                if scope["method"] == "POST":
                    body, scope["gzip"] = await self._body(headers, size, receive)
                await self.app(scope, _replay(body, receive), send)
        except APIError as error:
            record.error = error.code
            await error_response(error, record.form)(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> Tenant | None:
        """Whose API key the request brings, None where none is needed. Refuses other hosts, pages of other
        sites, and wrong keys.
        """
        host = headers.get("host", "")
        if self.policy.hosts is not None and _name(host) not in self.policy.hosts:
            text = f"This server does not answer for the host {host[:100]!r}: name it with --allow-host"
            raise APIError(403, text, code="wrong_host")
        origin = headers.get("origin")
        if origin is not None and not self._same_site(origin, host):
            text = f"Pages of {origin[:100]!r} may not ask this server: name them with --cors"
            raise APIError(403, text, code="wrong_origin")
        asks_first = scope["method"] == "OPTIONS" and origin is not None  # a browser, which sends no key yet
        if asks_first or scope["path"] in PUBLIC or scope["path"].startswith(PAGE):
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if "x-api-key" in headers and not given:  # Anthropic's
            scheme, given = "bearer", headers["x-api-key"]
        tenant = self.policy.keys.find(given.strip())
        if tenant is None or (self.policy.keys and scheme.lower() != "bearer"):
            text = "This server needs an API key, as the header Authorization: Bearer KEY or x-api-key: KEY"
            if given.strip() and scheme.lower() == "bearer":
                scope["record"].bad_key = fingerprint(given.strip())
                text = "This API key is wrong: it is none of this server's"
            raise APIError(401, text, type="authentication_error", code="invalid_api_key")
        return tenant

    def _same_site(self, origin: str, host: str) -> bool:
        return origin in self.policy.origins or origin.partition("://")[2] == host

    async def _body(self, headers: Headers, length: int, receive: Receive) -> tuple[bytes, bool]:
        """The whole body, if it is not declared as something else than JSON, short enough and there in time;
        and whether it is packed by gzip (`unpacked`). ``length``: the declared one, or 0.

        A page of another site could send one without a type, and is refused before by its Origin. What
        `curl -d` sends by default is read where no browser sent it.
        """
        browser = "origin" in headers or "sec-fetch-site" in headers
        types = r"application/json" if browser else r"application/(json|x-www-form-urlencoded)"
        if not re.match(rf"{types}\s*(;|$)", headers.get("content-type") or "application/json", re.I):
            raise APIError(415, "The body must be JSON: send Content-Type: application/json", code="not_json")
        coding = headers.get("content-encoding", "identity").lower()
        if coding not in ("identity", "gzip"):
            text = f"The body is coded as {coding[:40]!r}: send it as it is, or by gzip"
            raise APIError(415, text, code="not_json")
        if length > self.policy.body_bytes:
            raise _too_long(self.policy.body_bytes)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.policy.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise APIError(400, "The connection closed before the body's end", code="cut_short")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.policy.body_bytes:
                        raise _too_long(self.policy.body_bytes)
                    if not message.get("more_body"):
                        return b"".join(parts), coding == "gzip"
        except TimeoutError:
            seconds = self.policy.body_seconds
            raise APIError(
                408, f"The body did not arrive within {seconds:g} seconds", code="too_slow"
            ) from None


def unpacked(packed: bytes, most: int) -> bytes:
    """A gzip body, of which no more is unpacked than ``most`` bytes. For threads. APIError for another."""
    unpacking = zlib.decompressobj(wbits=31)
    try:
        body = unpacking.decompress(packed, most + 1)
    except zlib.error:
        raise APIError(400, "The body is not what gzip makes", code="invalid_gzip") from None
    if len(body) > most:
        raise _too_long(most)
    if not unpacking.eof:
        raise APIError(400, "The gzip body breaks off", code="invalid_gzip")
    if unpacking.unused_data:
        raise APIError(400, "Something follows the gzip body's end", code="invalid_gzip")
    return body


def _too_long(most: int) -> APIError:
    return APIError(413, f"A body may have {most:,} bytes at most", code="body_too_large")


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then the connection's other messages."""
    given = False

    async def first() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    def replay() -> Awaitable[Message]:
        nonlocal given
        if given:
            return receive()
        given = True
        return first()

    return replay


def _name(host: str) -> str:
    """The host of a Host header, without its port, an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
