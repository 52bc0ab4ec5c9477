"""The gate before the API: who may ask, from where, how much, and what every answer tells a browser.

A server on 127.0.0.1 is open to every program of its user, and a page in their browser is one of them. So a
request must name a host that is meant (a page that had its own name resolve to 127.0.0.1 names itself: DNS
rebinding), must not come from another site's page unless that was named (``Origin``), and must say that its
body is JSON, which a browser sends across sites only after asking. With a key, only who knows it is heard;
keys are compared as hashes, in constant time.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cutaway.serve.api_error import APIError, answer

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN = ("/health",)  # told to everyone, so that what starts and watches a server needs no key
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class AccessPolicy:
    """``hosts`` a request may name (None: any), ``origins`` whose pages may ask, the ``key`` to be known."""

    hosts: tuple[str, ...] | None = LOOPBACK
    origins: tuple[str, ...] = ()
    key: str | None = None
    body_bytes: int = 2 << 20
    body_seconds: float = 30.0


class AuthMiddleware:
    """ASGI middleware that lets through what the gate allows, with its body read and counted."""

    def __init__(self, app: ASGIApp, gate: AccessPolicy) -> None:
        self.app, self.gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._who(scope, headers)
            body = await self._body(headers, receive) if scope["method"] == "POST" else b""
        except APIError as problem:
            await answer(problem)(scope, receive, sealed)
            return
        await self.app(scope, _again(body, receive), sealed)

    def _who(self, scope: Scope, headers: Headers) -> None:
        """Refuses a host that is not meant, a page of another site, and who does not know the key."""
        host = headers.get("host", "")
        if self.gate.hosts is not None and _name(host) not in self.gate.hosts:
            raise APIError(
                403,
                f"This server does not answer for the host {host[:100]!r}: name it with --allow-host",
                code="wrong_host",
            )
        origin = headers.get("origin")
        if origin is not None and not self._same_site(origin, host):
            raise APIError(
                403,
                f"Pages of {origin[:100]!r} may not ask this server: name them with --cors",
                code="wrong_origin",
            )
        asks_first = scope["method"] == "OPTIONS" and origin is not None  # a browser, which sends no key yet
        if self.gate.key is None or asks_first or scope["path"] in OPEN:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not _same(given.strip(), self.gate.key):
            raise APIError(
                401,
                "This server needs its API key, as the header Authorization: Bearer KEY",
                type="authentication_error",
                code="invalid_api_key",
            )

    def _same_site(self, origin: str, host: str) -> bool:
        return origin in self.gate.origins or origin.partition("://")[2] == host

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body, if it is JSON by its own word, short enough and there in time."""
        if not re.match(r"application/json\s*(;|$)", headers.get("content-type", ""), re.I):
            raise APIError(415, "The body must be JSON: send Content-Type: application/json", code="not_json")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:19]) > self.gate.body_bytes:
            raise self._too_long()
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.gate.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise APIError(400, "The body ended before its end", code="cut_short")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.gate.body_bytes:
                        raise self._too_long()
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            seconds = self.gate.body_seconds
            raise APIError(
                408, f"The body did not arrive within {seconds:g} seconds", code="too_slow"
            ) from None

    def _too_long(self) -> APIError:
        return APIError(413, f"A body may have {self.gate.body_bytes:,} bytes at most", code="body_too_large")


def _again(body: bytes, receive: Receive) -> Receive:
    """The body as one message, and then what else the connection tells."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _name(host: str) -> str:
    """The host of a Host header, without its port, an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _same(given: str, key: str) -> bool:
    digests = (hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest() for text in (given, key))
    return hmac.compare_digest(*digests)
