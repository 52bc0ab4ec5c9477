"""Connections under limits that uvicorn lacks, each from its first byte on, before any key is checked.

A connection that sends no whole request head in time is closed, and so is one whose client does not read.
At the limit of a client its oldest connection without a request gives way to the new one; a client is refused
only where all its connections have requests.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

CLOSE = b"Connection: close\r\nContent-Length: 0\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\n" + CLOSE
LATE = b"HTTP/1.1 408 Request Timeout\r\n" + CLOSE
DESCRIPTORS = 128  # of the process, for files, helpers and the loop; connections have the rest


@dataclass
class Connections:
    """The connections of one server: at most ``most``, and ``of_client`` of one address."""

    most: int = 1024
    of_client: int = 256
    head_seconds: float = 10.0  # for a request's line and headers
    read_seconds: float = 60.0  # for a client to read what was sent
    _open: dict[str, OrderedDict[Any, None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    def admit(self, connection: Any) -> bool:
        """Whether a new connection may stay; an older one without a request may have to go for it."""
        own = self._open.get(connection.address, OrderedDict())
        if len(own) >= self.of_client and not _give_way(own):
            return False
        if len(self) >= self.most and not _give_way(max(self._open.values(), key=len)):
            return False
        self._open.setdefault(connection.address, OrderedDict())[connection] = None
        return True

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
            self.address = (transport.get_extra_info("peername") or ("",))[0]
            self.refused = not connections.admit(self)
            if self.refused:
                transport.write(BUSY)
                transport.close()
                return
            super().connection_made(transport)
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
