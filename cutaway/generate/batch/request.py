"""Requests to the scheduler, streams of their output, and finished generations."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from cutaway.errors import OperationalError, UserError
from cutaway.generate.batch.observation import Observation
from cutaway.generate.engine import BatchedEngine
from cutaway.generate.internals import Internals, LayerInternals
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.session import EditHooks

FinishReason = Literal["stop", "length", "context"]
CLIENT = "the client cancelled it"
TokenLogprobs = tuple[float, tuple[tuple[int, float], ...]]  # of a token, and (id, logprob) of the top ones


class ContextFullError(UserError):
    """The prompt leaves no room for an answer: `length` ids where the context holds `max_context`."""

    def __init__(self, length: int, max_context: int) -> None:
        super().__init__(
            f"The prompt is {length} ids long and the model's context holds {max_context}, "
            "prompt and answer together: shorten the prompt"
        )
        self.length = length
        self.max_context = max_context


class RequestCancelledError(OperationalError):
    """The request was cancelled before its answer was complete."""

    def __init__(self, why: str = CLIENT) -> None:
        super().__init__(f"The answer was stopped before its end: {why}")


class QueueFullError(UserError):
    """The limit of running and waiting requests is reached."""


class ShuttingDownError(UserError):
    """No new request is taken: the scheduler is shutting down."""

    def __init__(self) -> None:
        super().__init__("The server is about to stop and takes no new request: ask again in a while")


@runtime_checkable
class Constraint(Protocol):
    """A grammar or schema that an answer must follow: one object for each answer."""

    def mask(self, logits: np.ndarray, /) -> None:
        """Set the logits [v] of ids that may not come next to -inf, in place; end tokens are ids too."""
        ...

    def accept(self, id: int, /) -> None:
        """Advance by the chosen id, which is no end token."""
        ...

    @property
    def done(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        ...


@dataclass(frozen=True)
class Timings:
    """Seconds of computation (time that the caller takes between pieces is not counted), and ids read."""

    prefill_tokens: int  # of the prompt, in neither the session nor the prefix cache
    prefill_seconds: float
    decode_tokens: int  # after the first, which comes from the prefill's logits
    decode_seconds: float
    first_token_seconds: float
    drafted_tokens: int = 0  # proposed by speculative decoding, and of them those accepted
    accepted_tokens: int = 0
    queue_seconds: float = 0.0  # in a scheduler's queue

    @property
    def acceptance(self) -> float:
        """The acceptance rate of drafted tokens; 0 where none were drafted."""
        return self.accepted_tokens / max(self.drafted_tokens, 1)

    @property
    def prefill_tokens_per_second(self) -> float:
        """The prefill's speed."""
        return self.prefill_tokens / max(self.prefill_seconds, 1e-9)

    @property
    def decode_tokens_per_second(self) -> float:
        """The speed after the first token; 0 where none followed."""
        return self.decode_tokens / max(self.decode_seconds, 1e-9)


@dataclass(frozen=True)
class Generation:
    """A finished text.

    ids are all that were chosen, those that spelt a stop string included, but not the end token; logprobs
    and top_logprobs have one entry for each; stop_logprob is the end token's, where one was chosen.
    finish_reason "stop" was the stop named in `stop` (a string, or
    the id of an end token, None where a constraint was complete), "length" was max_tokens, "context" means
    that prompt and answer filled max_context. ``trace`` has the activations that `generate(keep=)` named.
    """

    text: str
    ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...]
    finish_reason: FinishReason
    stop: str | int | None
    max_context: int
    timings: Timings
    stop_logprob: float | None = None
    trace: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Piece:
    """What one token added. The last piece has no id: it brings text that was held back, and the generation.

    ``inside`` is what the request's internals show at the position from which the token was chosen.
    """

    text: str
    id: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    generation: Generation | None = None
    inside: tuple[LayerInternals, ...] = ()


Event = Piece | Exception


@dataclass(frozen=True)
class Request:
    """One prompt and how to continue it.

    Requests of one ``client`` wait behind each other, not before those of others; of the clients that wait,
    those with the highest ``priority`` come first. Pages of the prefix cache
    are shared among requests of one ``cache_scope`` and engine alone. ``engine`` is the scheduler's with an
    adapter beside its weights (``adapted``), None its own. ``prompt_logprobs`` asks for the log-probabilities
    of the prompt's ids too, with so many alternatives. ``drawn_logprobs`` gives the log-probabilities of
    what was drawn from, after temperature and cuts, in place of the model's own.
    """

    ids: tuple[int, ...]
    settings: SamplingParams
    constraint: Constraint | None = None
    prompt_logprobs: int | None = None
    drawn_logprobs: bool = False
    internals: Internals | None = None
    edit: EditHooks | None = None  # of the model's activations, for an engine that is Editable
    observation: Observation | None = None  # of the prompt's activations, for an engine that is Observable
    client: str = ""
    priority: int = 0
    cache_scope: bytes = b""
    engine: BatchedEngine | None = None


class ResponseStream:
    """One request's answer: iterate for its pieces, the last of which brings the Generation.

    Errors are raised after the pieces, RequestCancelledError after ``cancel``; ``subscribe`` is the
    alternative to iterating. ``prompt_logprobs``, where the request asks for them, are complete before the
    first piece: one for each prompt id, None for the first, which has no context. ``read`` of the prompt's
    ids are prefilled so far, of which ``cached`` were found in the prefix cache.
    """

    def __init__(self, request: Request, wake: Callable[[], None] = lambda: None) -> None:
        self.request = request
        self.prompt_logprobs: list[TokenLogprobs | None] = []
        self.read = self.cached = 0
        self.cancelled, self.why = False, CLIENT
        self._wake = wake
        self._events: list[Event] = []
        self._listeners: list[Callable[[Event], None]] = []
        self._changed = threading.Condition(threading.RLock())

    def __iter__(self) -> Iterator[Piece]:
        at = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda at=at: len(self._events) > at)
                event = self._events[at]
            if isinstance(event, Exception):
                raise event
            yield event
            if event.generation is not None:
                return
            at += 1

    def subscribe(self, listener: Callable[[Event], None]) -> None:
        """Call listener(event) for all events so far, and from now on from the scheduler's thread.

        Events are pieces; the last is the one with the generation, or an exception. A listener must be quick;
        one that raises is removed and its request cancelled.
        """
        with self._changed:
            for event in self._events:
                listener(event)
            self._listeners.append(listener)

    def cancel(self) -> None:
        """Stop the answer within the current step. From any thread; after the end it does nothing."""
        self.cancelled = True
        self._wake()

    @property
    def tokens(self) -> int:
        """How many tokens were published so far."""
        return len(self.ids)

    @property
    def ids(self) -> list[int]:
        """The ids that were published so far."""
        with self._changed:
            pieces = [event for event in self._events if isinstance(event, Piece)]
            return [piece.id for piece in pieces if piece.id is not None]

    @property
    def ended(self) -> bool:
        """Whether the last event is there."""
        with self._changed:
            last = self._events[-1] if self._events else None
            return isinstance(last, Exception) or (last is not None and last.generation is not None)

    def put(self, event: Event) -> None:
        """The scheduler's: publish an event. After the last one it does nothing."""
        with self._changed:
            if self.ended:
                return
            self._events.append(event)
            self._changed.notify_all()
            for listener in list(self._listeners):
                try:
                    listener(event)
                except Exception:
                    self._listeners.remove(listener)
                    self.cancel()
