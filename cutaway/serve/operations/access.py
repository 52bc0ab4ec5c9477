"""Who may connect and ask, and how much they may send.

Connections are limited from their first byte on, before any key is checked: one that sends no whole request
head in time is closed, and so is one whose client does not read. At the limit of a client its oldest
connection without a request gives way to the new one.

A server on 127.0.0.1 is open to every program of its user, and a page in their browser is one of them. So a
request must name an expected host (DNS rebinding makes a page's own name resolve to 127.0.0.1), must not come
from another site's page unless that is allowed (``Origin``), and must say that its body is JSON, which a
browser sends across sites only after asking. With API keys (api_keys.py), only requests with one of them are
answered, and the prefix cache is separate for each.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from cutaway.errors import UserError
from cutaway.serve.api_error import APIError, error_response, form_of
from cutaway.serve.operations.api_keys import KeyRing, Tenant, fingerprint
from cutaway.serve.operations.pacing import Pace

LOOPBACK = ("127.0.0.1", "localhost", "::1")
UNIX = "unix"  # the address of who connects to a Unix socket
PUBLIC = (
    "/",
    "/health",
    "/health/live",
    "/health/ready",
    "/ping",
)  # without a key: the page, and what watches
PAGE = "/page/"  # the page's own files, without a key
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
CLOSE = b"Connection: close\r\nContent-Length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n" + CLOSE
LATE = b"HTTP/1.1 408 Request Timeout\r\n" + CLOSE
DESCRIPTORS = 128  # of the process, for files, helpers and the loop; connections have the rest


# ---- connections -------------------------------------------------------------------------------------------


@dataclass
class Connections:
    """The connections of one server: at most ``most``, and ``of_client`` of an address that is no proxy's."""

    most: int = 1024
    of_client: int = 256
    head_seconds: float = 10.0  # for a request's line and headers
    read_seconds: float = 60.0  # for a client to read what was sent
    proxies: tuple[str, ...] = ()  # addresses and networks, whose X-Forwarded-For is believed
    _open: dict[str, OrderedDict[Any, None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._networks = networks(self.proxies)

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    def admit(self, connection: Any) -> bool:
        """Whether a new connection may stay; an older one without a request may have to go for it."""
        own = self._open.get(connection.address, OrderedDict())
        if len(own) >= self.of_client and not self._is_proxy(connection.address) and not _give_way(own):
            return False
        if len(self) >= self.most and not _give_way(max(self._open.values(), key=len)):
            return False
        self._open.setdefault(connection.address, OrderedDict())[connection] = None
        return True

    def _is_proxy(self, address: str) -> bool:
        if address == UNIX:
            return True
        return any(ipaddress.ip_address(address) in one for one in self._networks)

    def leave(self, connection: Any) -> None:
        """Forget a connection that is closed."""
        own = self._open.get(connection.address)
        if own is not None:
            own.pop(connection, None)
            if not own:
                del self._open[connection.address]


def _give_way(own: OrderedDict[Any, None]) -> bool:
    """Close the oldest of these connections that has no request, if there is one."""
    for connection in own:
        if connection.waiting:
            del own[connection]
            connection.transport.abort()
            return True
    return False


def networks(given: tuple[str, ...]) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    """Addresses and networks, parsed; UserError for what is neither."""
    try:
        return [ipaddress.ip_network(one) for one in given]
    except ValueError as error:
        raise UserError(
            f"--trusted-proxy: {error}: give an address or a network, such as 10.0.0.0/8"
        ) from None


class ForwardedMiddleware(ProxyHeadersMiddleware):
    """ASGI middleware: the client of a trusted proxy's request is the one that X-Forwarded-For names.

    uvicorn takes any text for an address. Here only what is one counts: the list is read from its end, where
    the nearest proxy wrote, up to the first entry that is no address. The client is then the proxy before it.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            name = b"x-forwarded-for"
            given = b",".join(value for key, value in scope["headers"] if key == name).decode("latin1")
            chain = list(takewhile(bool, map(_address, reversed(given.split(",")))))
            kept = [(key, value) for key, value in scope["headers"] if key != name]
            kept += [(name, ", ".join(reversed(chain)).encode())] if chain else []
            scope = {**scope, "headers": kept}
        await super().__call__(scope, receive, send)


def _address(entry: str) -> str:
    """The address in an entry of X-Forwarded-For, with or without a port, in its usual spelling; or none."""
    entry = entry.strip(" \t")
    found = re.fullmatch(r"\[([^]]*)\](?::\d{1,5})?|([^:]*):\d{1,5}", entry, re.ASCII)
    try:
        address = ipaddress.ip_address((found[1] or found[2]) if found else entry)
    except ValueError:
        return ""
    return "" if getattr(address, "scope_id", None) else str(address)  # a zone may be any text


def most_connections(wanted: int) -> int:
    """As many connections as wanted, or as the process's descriptors allow."""
    try:
        import resource
    except ImportError:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted + DESCRIPTORS:
        soft = wanted + DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, wanted + DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(8, min(wanted, soft - DESCRIPTORS))


def protocol(connections: Connections) -> type[asyncio.Protocol]:
    """uvicorn's protocol class under these limits."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    base: Any = AutoHTTPProtocol

    class Limited(base):
        """One connection. ``waiting``: no request of it is under way."""

        address, refused = "", False
        head: asyncio.TimerHandle | None = None
        stalled: asyncio.TimerHandle | None = None

        @property
        def waiting(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def connection_made(self, transport: Any) -> None:
            self.address = (transport.get_extra_info("peername") or (UNIX,))[0]
            self.refused = not connections.admit(self)
            if self.refused:
                transport.write(BUSY)
                transport.close()
                return
            super().connection_made(transport)
            self.client = self.client or (UNIX, 0)
            self._time_head()

        def connection_lost(self, exc: Exception | None) -> None:
            _stop(self.head, self.stalled)
            if not self.refused:
                connections.leave(self)
                super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self.refused:
                return
            super().data_received(data)
            if not self.waiting:
                _stop(self.head)
                self.head = None
            elif self.head is None:
                self._time_head()

        def send_400_response(self, msg: str) -> None:
            """Refuse what is not HTTP; the request whose body it came in gets no answer of its own."""
            if not self.waiting:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
                if self.cycle.response_started:
                    self.transport.close()
                    return
            super().send_400_response(msg)

        def pause_writing(self) -> None:
            super().pause_writing()
            self.stalled = self.loop.call_later(connections.read_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            _stop(self.stalled)
            super().resume_writing()

        def _time_head(self) -> None:
            self.head = self.loop.call_later(connections.head_seconds, self._late)

        def _late(self) -> None:
            self.transport.write(LATE)
            self.transport.close()

    return Limited


def _stop(*timers: asyncio.TimerHandle | None) -> None:
    for timer in timers:
        if timer is not None:
            timer.cancel()


# ---- requests ----------------------------------------------------------------------------------------------


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


class AuthMiddleware:
    """ASGI middleware: lets through what the policy allows, with its body read and limited."""

    def __init__(self, app: ASGIApp, policy: AccessPolicy) -> None:
        self.app, self.policy, self.pace = app, policy, Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["path"].startswith(f"{self.policy.root_path}/"):
            scope["path"] = scope["path"].removeprefix(self.policy.root_path)
        record, headers, refusal = scope["record"], Headers(scope=scope), None
        try:
            record.tenant = self._check(scope, headers)
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
                await self.app(scope, _replay(body, receive), send_with_headers)
        except APIError as error:
            record.error = error.code
            await error_response(error, form_of(scope))(scope, receive, send_with_headers)

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
