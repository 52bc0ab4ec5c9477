"""Continuous batching: one thread owns the model, and requests join and leave between its steps (Orca, OSDI
2022).

A step is one call of the engine. It reads the newest id of every answer under way and a stretch of the
prompts that are not read yet, no longer than the others can wait for, and every answer then chooses its next
id from its own logits. It is the engine's law that no text's logits depend on what is read beside it, nor on
where it was cut, and each request has its own random numbers: so an answer is the same, bit for bit, as if it
had been alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cutaway.errors import UserError
from cutaway.generate.batch.batch import Part, read
from cutaway.generate.batch.prefill_budget import PrefillBudget
from cutaway.generate.batch.prefix_cache import PrefixCache
from cutaway.generate.batch.queue import Queue
from cutaway.generate.batch.request import (
    QueueFullError,
    Request,
    RequestCancelledError,
    ResponseStream,
    ShuttingDownError,
)
from cutaway.generate.batch.sequence import Answer
from cutaway.generate.decode import Piece, Run, TokenizerProtocol, checked, shown_ids
from cutaway.generate.engine import BatchedEngine, Editable, Engine
from cutaway.generate.sampling_params import SamplingParams

__all__ = [
    "RequestCancelledError",
    "ShuttingDownError",
    "SchedulerStats",
    "Request",
    "QueueFullError",
    "Scheduler",
    "ResponseStream",
]


AHEAD, LOW = 4, 1  # pages made ahead for each request that may run: while none does, and while some do
PAUSE = 0.001  # seconds between pieces of a page that is made beside steps


@runtime_checkable
class Model(Protocol):
    """What is served: a LanguageModel."""

    @property
    def engine(self) -> Engine: ...

    @property
    def tokenizer(self) -> TokenizerProtocol: ...

    def ending(self, settings: SamplingParams, /) -> SamplingParams: ...


@runtime_checkable
class MakesAhead(Protocol):
    """An engine whose memory for texts can be made before they come."""

    def make_ahead(self, pages: int, pause: Callable[[], None], /) -> bool: ...


@dataclass(frozen=True)
class SchedulerStats:
    """What the engine does now, and what it has done since it began."""

    running: int
    queued: int
    max_sequences: int
    max_queue: int
    pages_total: int  # of state, that there is room for
    pages_used: int  # promised to the requests that run
    pages_kept: int  # of what was read, for texts that begin alike
    page_bytes: int
    prompt_tokens: int  # of the prompts that were read
    cached_tokens: int  # of those, taken over from a text that began alike
    generated_tokens: int
    finished: int
    cancelled: int
    failed: int
    refused: int  # because the queue was full
    steps: int
    step_seconds: float


class Scheduler:
    """Answers many requests at once with one model, on a thread of its own.

    At most ``max_sequences`` run and ``max_queue`` wait. ``prefill_chunk`` is how many ids of prompts a step
    reads at most. ``state_bytes`` bounds what is remembered of texts: of those that run, whose pages are
    promised up to their last id before they start, and of others for texts that begin alike; None is room for
    max_sequences full contexts, or half of the machine's memory if that is less. Raises UserError for an
    engine that reads one text only.
    """

    def __init__(
        self,
        lm: Model,
        *,
        max_sequences: int = 16,
        max_queue: int = 64,
        prefill_chunk: int = 256,
        state_bytes: int | None = None,
    ) -> None:
        if not isinstance(lm.engine, BatchedEngine):
            raise UserError("This engine reads one text only: it cannot serve several at once")
        if min(max_sequences, prefill_chunk) < 1 or max_queue < 0:
            raise UserError("max_sequences and prefill_chunk must be 1 or more, and max_queue 0 or more")
        self.lm, self.engine = lm, lm.engine
        self.max_sequences, self.max_queue = max_sequences, max_queue
        self._pages = _room(self.engine, max_sequences, state_bytes)
        self._prefixes = PrefixCache(self._pages)
        self._pace = PrefillBudget(prefill_chunk)
        self._queue: Queue[Answer] = Queue()
        self._running: list[Answer] = []
        self._counts: Counter[str] = Counter()
        self._step_seconds = 0.0
        self._closing = self._over = False
        self.told: Callable[[], None] = lambda: None  # called when all is told and the model's thread waits
        self._wake = threading.Condition()
        self._stepped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="cutaway-model", daemon=True)
        self._thread.start()
        if isinstance(self.engine, MakesAhead):
            threading.Thread(
                target=self._make, args=(self.engine,), name="cutaway-pages", daemon=True
            ).start()

    # ---- for everyone --------------------------------------------------------------------------------------

    def submit(self, request: Request) -> ResponseStream:
        """Takes a request. From any thread. Raises UserError for one that cannot be honoured
        (ContextFullError for a prompt that does not fit), QueueFullError, ShuttingDownError.
        """
        if request.edit is not None and not isinstance(self.engine, Editable):
            raise UserError("This engine cannot edit activations: only the definition can")
        settings = self.lm.ending(request.settings)
        settings.check(shown_ids(self.engine, self.lm.tokenizer))
        ids = checked(request.ids, self.lm.tokenizer, self.engine)
        if request.internals is not None:
            request.internals.check(self.engine.layers, shown_ids(self.engine, self.lm.tokenizer))
        stream = ResponseStream(request, self._notify)
        run = Run(self.engine, self.lm.tokenizer, ids, settings, request.constraint)
        answer = Answer(stream, run, self.engine)
        if answer.pages_needed > self._pages:
            raise UserError(
                f"The prompt of {len(ids)} ids and an answer of up to {run.limit} need "
                f"{answer.pages_needed} pages of state, and there is room for {self._pages}: ask for fewer "
                "max_tokens"
            )
        with self._wake:
            if self._closing:
                raise ShuttingDownError
            waiting = len(self._queue) + len(self._running)
            if waiting >= self.max_sequences + self.max_queue:
                self._counts["refused"] += 1
                raise QueueFullError(
                    f"{self.max_sequences} requests run and {self.max_queue} wait, which is as many as may: "
                    "ask again in a while"
                )
            self._queue.add(request.client, answer)
            self._wake.notify_all()
        return stream

    def stats(self) -> SchedulerStats:
        """What it does now. From any thread."""
        with self._wake:
            counts = self._counts
            return SchedulerStats(
                running=len(self._running),
                queued=len(self._queue),
                max_sequences=self.max_sequences,
                max_queue=self.max_queue,
                pages_total=self._pages,
                pages_used=self._promised(),
                pages_kept=len(self._prefixes),
                page_bytes=self.engine.page_bytes,
                step_seconds=self._step_seconds,
                **{name: counts[name] for name in _COUNTED},
            )

    def drain(self, seconds: float) -> None:
        """Takes no new request, waits for those that are there at most so long, and stops the rest."""
        with self._wake:
            self._closing = True
            self._wake.wait_for(lambda: not self._running and not len(self._queue), seconds)
            for answer in (*self._running, *self._queue.remove(lambda answer: True)):
                answer.stream.cancelled = True
                answer.stream.tell(RequestCancelledError("the server stops"))
            self._wake.notify_all()
        self.told()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def close(self) -> None:
        """Stops everything within the step that is under way."""
        self.drain(0)

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _make(self, engine: MakesAhead) -> None:
        """On a thread of its own: has pages ready, so that no step waits for the system to find memory."""
        while not self._over:
            pages = (LOW if self._running else AHEAD) * self.max_sequences
            if not engine.make_ahead(min(self._pages, pages), self._give_way):
                self._stepped.wait()
                self._stepped.clear()

    def _give_way(self) -> None:
        if self._running:
            time.sleep(PAUSE)

    # ---- the model's thread --------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._admit():
            try:
                self._step()
            except Exception as error:  # a fault of ours ends what runs, and nothing else
                self._end_all(list(self._running), error)
            self._stepped.set()
        self._over = True
        self._stepped.set()

    def _admit(self) -> bool:
        """Lets go of what was cancelled, and begins what there is room for. False once all is over."""
        with self._wake:
            while True:
                self._drop_cancelled()
                while self._may_begin():
                    answer = self._queue.pop()
                    self._running.append(answer)
                    self._prefixes.fit(self._pages - self._promised())
                    answer.begin()
                if self._running:
                    return True
                self._wake.notify_all()
                self.told()
                if self._closing and not len(self._queue):
                    return False
                self._wake.wait()

    def _may_begin(self) -> bool:
        """Whether there is a place and the pages for whose turn it is: nobody overtakes who needs many."""
        first = self._queue.first()
        if first is None or len(self._running) >= self.max_sequences:
            return False
        return self._promised() + first.pages_needed <= self._pages

    def _promised(self) -> int:
        return sum(answer.pages_needed for answer in self._running)

    def _drop_cancelled(self) -> None:
        gone = self._queue.remove(_cancelled)
        gone += [answer for answer in self._running if _cancelled(answer)]
        self._running = [answer for answer in self._running if not _cancelled(answer)]
        for answer in gone:
            self._counts["cancelled"] += 1
            answer.stream.tell(RequestCancelledError())

    def _step(self) -> None:
        """One call of the engine, and what follows from it for each text that it read."""
        started = time.perf_counter()
        decoding = [answer for answer in self._running if answer.decoding]
        parts = [Part(answer, [answer.run.history.last]) for answer in decoding]
        parts += self._stretches(self._pace.allowed(len(decoding)))
        self.told()  # of the step before: who hears of it works while the engine reads
        try:
            read(self.engine, parts)
        except Exception as error:
            self._end_all([part.answer for part in parts], error)
            return
        chosen = [_say(part) for part in parts]
        for part in parts:
            self._keep(part)
        for part, said in zip(parts, chosen, strict=True):
            self._tell(part.answer, said)
        seconds = time.perf_counter() - started
        self._pace.saw(len(decoding), sum(len(part.ids) for part in parts) - len(decoding), seconds)
        with self._wake:
            self._counts["steps"] += 1
            self._step_seconds += seconds

    def _stretches(self, most: int) -> list[Part]:
        """What is read of prompts, at most so many ids, shared out evenly. A page that one text is reading is
        not read a second time: texts that begin so too wait for it.
        """
        reading = [answer for answer in self._running if not answer.decoding]
        size, begun, claimed = self.engine.page, [], set()
        for answer in sorted(reading, key=lambda answer: (answer.state.length % size == 0, answer.served)):
            answer.share(self._prefixes)
            page = answer.next_page
            if page is None or page not in claimed:
                begun.append(answer)
                claimed.add(page)
        parts: list[Part] = []
        for left, answer in zip(range(len(begun), 0, -1), begun, strict=True):
            if most > 0:
                parts.append(Part(answer, answer.stretch(max(1, most // left))))
                most -= len(parts[-1].ids)
                answer.served = self._counts["steps"]
        return parts

    def _keep(self, part: Part) -> None:
        """What a text has read is kept for others, and counted when its prompt is."""
        answer = part.answer
        answer.keep(self._prefixes)
        if answer.state.length - len(part.ids) < len(answer.prompt) <= answer.state.length:
            self._count(prompt_tokens=len(answer.prompt), cached_tokens=answer.shared)

    def _tell(self, answer: Answer, said: list[Piece] | Exception) -> None:
        """What a text says is told; at its end it leaves."""
        if isinstance(said, Exception):
            self._end_all([answer], said)
            return
        self._count(generated_tokens=sum(piece.id is not None for piece in said))
        if answer.run.reason is not None:
            self._leave(answer)
            self._count(finished=1)
        for piece in said:
            answer.stream.tell(piece)

    def _end_all(self, answers: Sequence[Answer], error: Exception) -> None:
        for answer in answers:
            self._leave(answer)
            self._count(failed=1)
            answer.stream.tell(error)

    def _leave(self, answer: Answer) -> None:
        with self._wake:
            self._running = [other for other in self._running if other is not answer]
            self._prefixes.fit(self._pages - self._promised())

    def _count(self, **more: int) -> None:
        with self._wake:
            self._counts.update(more)


_COUNTED = (
    "prompt_tokens",
    "cached_tokens",
    "generated_tokens",
    "finished",
    "cancelled",
    "failed",
    "refused",
    "steps",
)


def _say(part: Part) -> list[Piece] | Exception:
    """What a text says after a step, nothing while its prompt is being read; what went wrong is its own."""
    answer, logits = part.answer, part.logits
    assert logits is not None
    start = answer.state.length - len(part.ids)
    try:
        if answer.stream.request.prompt_logprobs is not None and start < len(answer.prompt):
            answer.score(start, logits)
        return answer.take(logits[-1], part.inside) if answer.decoding else []
    except Exception as error:
        return error


def _cancelled(answer: Answer) -> bool:
    return answer.stream.cancelled


def _room(engine: BatchedEngine, sequences: int, state_bytes: int | None) -> int:
    """How many pages may be in use."""
    if state_bytes is None:
        whole = -(-engine.max_context // engine.page) * sequences
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return max(1, min(whole, memory // 2 // max(1, engine.page_bytes)))
    if state_bytes < engine.page_bytes:
        raise UserError(f"state_bytes is {state_bytes}, and one page of a text takes {engine.page_bytes}")
    return state_bytes // max(1, engine.page_bytes)
