"""Work away from the event loop: some threads, a fair queue between clients, a time limit, and cancelling."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from cutaway.generate.batch.queue import Queue
from cutaway.generate.batch.request import QueueFullError, RequestCancelledError
from cutaway.serve.api_error import APIError

if TYPE_CHECKING:
    from torch import nn

Made = TypeVar("Made")
_thread = threading.local()  # .job: the one that this thread runs


class _Job:
    def __init__(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.work, self.arguments = work, arguments
        self.future: Future[Any] = Future()
        self.stopped = False

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        _thread.job = self
        try:
            self.future.set_result(self.work(*self.arguments))
        except BaseException as error:
            self.future.set_exception(error)
        finally:
            _thread.job = None


class FairPool:
    """``threads`` that run jobs, whose clients take turns. At most ``most`` wait, half of them of one
    client.
    """

    def __init__(self, threads: int, name: str, most: int) -> None:
        self._threads = ThreadPoolExecutor(threads, name)
        self._queue: Queue[_Job] = Queue()
        self._most = most
        self._lock = threading.Lock()

    async def run(self, client: str, seconds: float, work: Callable[..., Made], *arguments: Any) -> Made:
        """The work's result. QueueFullError where too many wait, APIError after so many seconds. When the
        caller is cancelled, or the time is up, waiting work never starts and running work sees
        `check_stopped`.
        """
        job = _Job(work, arguments)
        with self._lock:
            waiting, own = len(self._queue), self._queue.count(client)
            if waiting >= self._most or own >= (self._most + 1) // 2:
                raise QueueFullError(
                    f"{waiting} requests wait, {own} of them yours: the limit is reached, try again later"
                )
            self._queue.add(client, job)
        self._threads.submit(self._next)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(job.future)
        except TimeoutError:
            raise APIError(
                504, f"The answer took more than {seconds:g} seconds", type="server_error", code="too_slow"
            ) from None
        finally:
            job.stopped = True
            with self._lock:
                self._queue.remove(lambda waiting: waiting.stopped)

    def _next(self) -> None:
        """Run whose turn it is; a job that was cancelled left nothing to run."""
        with self._lock:
            job = self._queue.pop() if len(self._queue) else None
        if job is not None:
            job.run()


def check_stopped() -> None:
    """Raise RequestCancelledError where the request of this thread's job is over."""
    job = getattr(_thread, "job", None)
    if job is not None and job.stopped:
        raise RequestCancelledError


@contextlib.contextmanager
def stoppable(model: nn.Module) -> Iterator[None]:
    """Has a forward pass of this thread end before its next block once its request is over."""
    from cutaway.hooks import hooked

    blocks: Any = model.blocks
    with hooked((block, lambda *_: check_stopped(), None) for block in blocks):
        yield
