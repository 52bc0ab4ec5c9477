"""Limits on connections, from the first byte on, before any key is checked.

A connection that sends no whole request head in time is closed, and so is one whose client does not read. At
the limit of a client its oldest connection without a request gives way to the new one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from cutaway.errors import UserError

UNIX = "unix"  # the address of who connects to a Unix socket
CLOSE = b"Connection: close\r\nContent-Length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n" + CLOSE
LATE = b"HTTP/1.1 408 Request Timeout\r\n" + CLOSE
DESCRIPTORS = 128  # of the process, for files, helpers and the loop; connections have the rest


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
    """The limit of connections: the wanted number, or what the process's descriptors allow."""
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
    return type("Limited", (_Limited, base), {"admission": connections})


def _stop(*timers: asyncio.TimerHandle | None) -> None:
    for timer in timers:
        if timer is not None:
            timer.cancel()


_Base: Any = object  # uvicorn's protocol class beside it


class _Limited(_Base):
    """uvicorn's protocol under these limits: one connection. ``waiting``: no request of it is under way."""

    admission: Connections  # uvicorn has a field `connections` of its own
    address, refused = "", False
    head: asyncio.TimerHandle | None = None
    stalled: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        self.address = (transport.get_extra_info("peername") or (UNIX,))[0]
        self.refused = not self.admission.admit(self)
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
            self.admission.leave(self)
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
        self.stalled = self.loop.call_later(self.admission.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        _stop(self.stalled)
        super().resume_writing()

    def _time_head(self) -> None:
        self.head = self.loop.call_later(self.admission.head_seconds, self._late)

    def _late(self) -> None:
        self.transport.write(LATE)
        self.transport.close()
