"""Between the event loop and other threads: work done beside it, in turns, and events that come to it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from cutaway.generate.batch.fair_queue import FairQueue
from cutaway.generate.batch.request import QueueFullError, RequestCancelledError, ShuttingDownError
from cutaway.serve.api_error import timeout_error

Result = TypeVar("Result")
MOST_WAITING = 4096  # jobs: twice what all connections can queue, so no finished answer is refused
THREADS = 4  # for all work beside the event loop that does not compute with the model
_thread = threading.local()  # .job: the one that this thread runs; .spend: counts the tokens that it reads


class _Job:
    def __init__(self, work: Callable[..., Any], arguments: tuple[Any, ...], threads: int) -> None:
        self.work, self.arguments, self.threads = work, arguments, threads  # for its client
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
    """Threads for work beside the event loop, whose clients take turns: one may occupy half of the threads,
    so that another's work finds one. At most ``most`` jobs wait, of one client as many as places are free.

    A ``large`` job has its client's whole share: two of them at once make every other thread, the model's
    among them, wait for Python's lock twice as long.
    """

    def __init__(self, threads: int, name: str, most: int) -> None:
        self._threads = ThreadPoolExecutor(threads, name)
        self._share = max(1, threads // 2)
        self._queue: FairQueue[_Job] = FairQueue()
        self._most = most
        self._lock = threading.Condition()
        self._running: dict[_Job, str] = {}  # and whose they are
        self._closing = False

    async def run(
        self,
        client: str,
        seconds: float,
        work: Callable[..., Result],
        *arguments: Any,
        large: bool = False,
    ) -> Result:
        """The work's result. QueueFullError where too many wait, APIError after so many seconds. When the
        caller is cancelled, or the time is up, waiting work never starts and running work sees
        `check_stopped`.
        """
        job = _Job(work, arguments, self._share if large else 1)
        with self._lock:
            if self._closing:
                raise ShuttingDownError
            waiting, own = len(self._queue), self._queue.count(client)
            if not self._queue.has_room(client, self._most):
                raise QueueFullError(
                    f"{waiting} requests wait, {own} of them yours: the limit is reached, try again later"
                )
            self._queue.add(client, job)
        self._threads.submit(self._work)
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(job.future)
        except TimeoutError:
            raise timeout_error(seconds) from None
        finally:
            job.stopped = True
            with self._lock:
                self._queue.remove(lambda waiting: waiting.stopped)

    def _work(self) -> None:
        """Run jobs while one may run; cancelled ones have left the queue. A job that waits for its client's
        share is run by the thread that frees a place of it.
        """
        while (job := self._begin()) is not None:
            job.run()
            with self._lock:
                del self._running[job]
                self._lock.notify_all()

    def _begin(self) -> _Job | None:
        with self._lock:
            if not self._queue.clients:
                return None
            used = Counter[str]()
            for job, client in self._running.items():
                used[client] += job.threads
            found = self._queue.pop({client for client, count in used.items() if count >= self._share})
            if found is None:
                return None
            client, job = found
            self._running[job] = client
            return job

    def drain(self, seconds: float) -> int:
        """Take no new work, wait at most so long for the rest, and have it stopped; how much that was."""
        with self._lock:
            self._closing = True
            self._lock.wait_for(lambda: not self._running and not len(self._queue), seconds)
            waiting = self._queue.remove(lambda _: True)
            for job in waiting:
                if job.future.set_running_or_notify_cancel():
                    job.future.set_exception(ShuttingDownError())
            for job in self._running:
                job.stopped = True
            return len(waiting) + len(self._running)


def spend(tokens: int) -> None:
    """Count tokens that this thread's work reads, for its request's log line and key."""
    if (count := getattr(_thread, "spend", None)) is not None:
        count(tokens)


@contextlib.contextmanager
def counted(count: Callable[[int], Any]) -> Iterator[None]:
    """The tokens that this thread's work spends go to ``count``."""
    _thread.spend = count
    try:
        yield
    finally:
        _thread.spend = None


def check_stopped() -> None:
    """Raise RequestCancelledError where the request of this thread's job is over."""
    job = getattr(_thread, "job", None)
    if job is not None and job.stopped:
        raise RequestCancelledError


@contextlib.contextmanager
def stoppable(model: Any) -> Iterator[None]:
    """This thread's forward passes end before their next block once its request is over."""
    from cutaway.hooks import hooked

    with hooked((block, lambda *_: check_stopped(), None) for block in model.blocks):
        yield


class LoopBridge:
    """Events on their way to the queues of one event loop, which is woken once for all of a step: each waking
    hands Python's lock over, and the thread that wakes waits to have it back.

    Listeners and ``send`` may be called by any thread, ``deliver`` by the loop's own.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[tuple[asyncio.Queue[Any], Any]] = deque()

    def listener(self, queue: asyncio.Queue[tuple[int, Any]], which: int = 0) -> Callable[[Any], None]:
        """What adds an event of this number to the queue; it is delivered after the next ``send``."""

        def put(event: Any) -> None:
            self._waiting.append((queue, (which, event)))

        return put

    def send(self) -> None:
        """Have the loop deliver what waits."""
        if self._waiting and self._loop is not None:
            self._loop.call_soon_threadsafe(self.deliver)

    def deliver(self) -> None:
        """Put what waits into its queues, in order."""
        self._loop = asyncio.get_running_loop()
        while self._waiting:
            queue, event = self._waiting.popleft()
            queue.put_nowait(event)
