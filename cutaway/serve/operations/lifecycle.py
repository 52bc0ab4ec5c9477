"""From the socket to the last answer: sockets, signals, readiness, and a stop that ends no answer midway.

SIGTERM: /health/ready turns 503 at once and every response closes its connection; new requests are still
answered for ``delay`` seconds in which a balancer notices. Then the socket closes, and what was accepted has
``drain_seconds``: a request that is still parsed is answered too, since the models close last. What is left
ends with an error event. SIGHUP calls ``reload``; SIGUSR1 writes every thread's stack to standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import math
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from cutaway.errors import OperationalError, UserError
from cutaway.serve.operations import bounded_log
from cutaway.serve.operations.models import Models

log = logging.getLogger("cutaway.serve")
GRACE = 10  # seconds after the drain for the last bytes, before connections are cut
SAVE_TICKS = 50  # of a tenth of a second, between two calls of ``save``
SYSTEMD_FIRST = 3  # the first descriptor that systemd passes on


def hold_signals() -> None:
    """Let no signal but those to stop end the process, from now on."""
    for name in ("SIGHUP", "SIGUSR2"):
        if hasattr(signal, name) and not (name == "SIGHUP" and sys.stdin is not None and sys.stdin.isatty()):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        with contextlib.suppress(OSError, ValueError):  # a standard error that is no file has no descriptor
            faulthandler.register(signal.SIGUSR1, sys.__stderr__ or sys.stderr)


class Server(uvicorn.Server):
    """uvicorn's server with this life cycle."""

    def __init__(
        self,
        config: uvicorn.Config,
        models: Models,
        delay: float = 0.0,
        reload: Callable[[], None] = lambda: None,
        uds: Path | None = None,
        save: Callable[[], None] = lambda: None,
    ) -> None:
        config.timeout_graceful_shutdown = math.ceil(models.default.limits.drain_seconds) + GRACE
        super().__init__(config)
        self.models, self.delay, self.reload, self.uds = models, delay, reload, uds
        self.save, self._stop_at = save, math.inf
        self._heard: list[str] = []  # of signals, what the log does not tell yet

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal. Signals are this server's from before the event loop begins until it has
        closed: one that comes between, or a second one, would end its tasks with a traceback each.
        """
        with self.capture_signals():
            super().run(sockets)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
        notify("READY=1")

    def _reload(self) -> None:
        try:
            self.reload()
        except (UserError, OperationalError) as error:
            log.error("Nothing was reloaded: %s", error)
        else:
            log.warning("Reloaded the API keys, the certificate and the log level")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.models.stopping.set()
        name = signal.Signals(sig).name
        if sig == signal.SIGTERM and self.delay > 0 and math.isinf(self._stop_at) and not self.should_exit:
            self._stop_at = time.monotonic() + self.delay
            self._captured_signals.append(sig)
            self._heard.append(
                f"{name}: not ready any more; for {self.delay:g} s requests are still answered"
            )
        else:
            super().handle_exit(sig, frame)
            self._heard.append(f"{name}: " + ("ending at once" if self.force_exit else "the drain begins"))

    async def on_tick(self, counter: int) -> bool:
        self._tell()
        if counter % SAVE_TICKS == SAVE_TICKS - 1:
            await self._save()
        return await super().on_tick(counter) or time.monotonic() >= self._stop_at

    async def _save(self) -> None:
        try:
            await asyncio.to_thread(self.save)
        except Exception as error:  # a full disk ends no server
            log.error("What keys have used could not be saved: %s", error)

    def _tell(self) -> None:
        """Log the signals; a handler may not, since it may have interrupted the log."""
        while self._heard:
            log.info("%s", self._heard.pop(0))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.models.stopping.set()
        self._tell()
        notify("STOPPING=1")
        if self.uds is not None:
            self.uds.unlink(missing_ok=True)
        seconds, background = self.models.default.limits.drain_seconds, self.models.background
        log.info("The socket closes: answers under way have %g seconds", seconds)
        closing, ends = asyncio.create_task(super().shutdown(sockets)), time.monotonic() + seconds
        while not (closing.done() and not background) and time.monotonic() < ends and not self.force_exit:
            await asyncio.sleep(0.05)
            self._tell()
        cut = await asyncio.to_thread(self.models.close)
        await closing
        await self.lifespan.shutdown()  # which a second signal leaves out: its task would end by a traceback
        if background:
            await asyncio.wait(background, timeout=GRACE)
        await asyncio.to_thread(self.models.default.pool.drain, 0.0)
        await self._save()
        log.log(logging.WARNING if cut else logging.INFO, "Stopped: %d answers were cut off", cut)
        await asyncio.to_thread(bounded_log.flush)


def notify(state: str) -> None:
    """Tell systemd (sd_notify), where it has asked for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out, contextlib.suppress(OSError):
            out.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


def bound(host: str, port: int, uds: Path | None = None, reuse_port: bool = False) -> socket.socket:
    """The server's socket, bound and not listening yet: a port that is taken is reported before a model is
    loaded. systemd's own where it passed one on (socket activation). OperationalError if there is none.
    """
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS"):
        return socket.socket(fileno=SYSTEMD_FIRST)
    if uds is not None:
        family, address, where = socket.AF_UNIX, str(uds), str(uds)
    else:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        address, where = (host, port), f"{host}, port {port}"
    # asyncio sets TCP_NODELAY on sockets that name the protocol: without it keep-alive answers wait 40 ms
    made = socket.socket(family, socket.SOCK_STREAM, 0 if uds is not None else socket.IPPROTO_TCP)
    try:
        if uds is not None:
            _remove_stale(uds)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
        if uds is not None:
            uds.chmod(0o660)
    except (OSError, OverflowError) as error:
        made.close()
        raise OperationalError(f"Cannot listen on {where}: {error}") from None
    return made


def _remove_stale(path: Path) -> None:
    """Remove a Unix socket that no server listens on any more."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
