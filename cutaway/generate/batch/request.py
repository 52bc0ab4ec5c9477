"""What whoever asked holds while the model answers: pieces as they come, and the way to stop it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cutaway.errors import OperationalError, UserError
from cutaway.generate.decode import Constraint, Piece
from cutaway.generate.internals import Internals
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.session import Edited

Event = Piece | Exception
Scored = tuple[float, tuple[tuple[int, float], ...]]  # a log-probability, and the best (id, log-probability)


class RequestCancelledError(OperationalError):
    """The answer was stopped before its end."""

    def __init__(self, why: str = "whoever asked for it cancelled it") -> None:
        super().__init__(f"The answer was stopped before its end: {why}")


class QueueFullError(UserError):
    """As many requests run and wait as may."""


class ShuttingDownError(UserError):
    """No new request is taken: the server is about to stop."""

    def __init__(self) -> None:
        super().__init__("The server is about to stop and takes no new request: ask again in a while")


@dataclass(frozen=True)
class Request:
    """What one request asks of the engine. Requests of one ``client`` wait behind each other, not before
    those of others; ``prompt_logprobs`` asks for the log-probabilities of the prompt's ids too, with so many
    alternatives.
    """

    ids: tuple[int, ...]
    settings: SamplingParams
    constraint: Constraint | None = None
    prompt_logprobs: int | None = None
    internals: Internals | None = None
    edit: Edited | None = None  # of the model's activations, for an engine that is Editable
    client: str = ""


class ResponseStream:
    """One request's answer: iterate for its pieces, the last of which brings the Generation.

    What goes wrong is raised where the pieces end, RequestCancelledError after ``cancel``. ``subscribe`` is
    the other way to hear of them. ``prompt_logprobs``, where they were asked for, are there before the first
    piece: one a prompt id, None for the first, which nothing comes before.
    """

    def __init__(self, request: Request, wake: Callable[[], None] = lambda: None) -> None:
        self.request = request
        self.prompt_logprobs: list[Scored | None] = []
        self.cancelled = False
        self._wake = wake
        self._events: list[Event] = []
        self._listeners: list[Callable[[Event], None]] = []
        self._told = threading.Condition(threading.RLock())

    def __iter__(self) -> Iterator[Piece]:
        at = 0
        while True:
            with self._told:
                self._told.wait_for(lambda at=at: len(self._events) > at)
                event = self._events[at]
            if isinstance(event, Exception):
                raise event
            yield event
            if event.generation is not None:
                return
            at += 1

    def subscribe(self, listener: Callable[[Event], None]) -> None:
        """Calls listener(event) for what has happened so far, and from now on from the model's thread.

        Events are pieces; the last is the one with the generation, or an exception. A listener must be quick,
        and one that raises is not called again: its request is cancelled.
        """
        with self._told:
            for event in self._events:
                listener(event)
            self._listeners.append(listener)

    def cancel(self) -> None:
        """Stops the answer within the step that is under way. From any thread; after the end it does
        nothing.
        """
        self.cancelled = True
        self._wake()

    @property
    def ended(self) -> bool:
        """Whether the last event is there."""
        with self._told:
            return bool(self._events) and _ends(self._events[-1])

    def tell(self, event: Event) -> None:
        """The scheduler's: what happened. Nothing is told after the end."""
        with self._told:
            if self._events and _ends(self._events[-1]):
                return
            self._events.append(event)
            self._told.notify_all()
            for listener in list(self._listeners):
                try:
                    listener(event)
                except Exception:
                    self._listeners.remove(listener)
                    self.cancel()


def _ends(event: Event) -> bool:
    return isinstance(event, Exception) or event.generation is not None
