"""Continuous batching: one thread owns the model, and requests join and leave between its steps.

A step (Orca, OSDI 2022) is one call of the engine. It reads the newest id of every sequence that decodes and
a chunk of the prompts that are not read yet (chunked prefill, 2308.16369), no longer than the others can wait
for, and every sequence then chooses its next id from its own logits. Each engine guarantees that a text's
logits depend neither on what is read beside it nor on where it was cut, and each request has its own random
numbers: so an answer is the same, bit for bit, as if the request had run alone.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from cutaway.errors import UserError
from cutaway.generate.batch.chunk import Chunk, forward
from cutaway.generate.batch.fair_queue import FairQueue
from cutaway.generate.batch.prefix_cache import PrefixCache, page_capacity
from cutaway.generate.batch.prefix_store import PrefixStore, StoreFigures
from cutaway.generate.batch.request import (
    Piece,
    QueueFullError,
    Request,
    RequestCancelledError,
    ResponseStream,
    ShuttingDownError,
)
from cutaway.generate.batch.restoring import Restoring
from cutaway.generate.batch.sequence import (
    ScheduledSequence,
    SequenceOutput,
    TokenizerProtocol,
    check_prompt,
    vocab_size,
)
from cutaway.generate.batch.step_budget import DecodeTurns, PrefillBudget, fair_parts, prompts_waiting
from cutaway.generate.engine import AllocatesAhead, BatchedEngine, Editable, Engine, Observable, Storable
from cutaway.generate.speculative import Drafting, check_rewinds

AHEAD, LOW = 4, 1  # pages allocated ahead for each request that may run: while none does, and while some do
PAUSE = 0.001  # seconds between pieces of a page that is allocated beside steps
LATELY = 30.0  # seconds for which a client counts as present after its last request
FORKS = 4  # of a prompt that begin in one step beside other clients: each copies a page and samples


@dataclass(frozen=True)
class SchedulerStats:
    """The scheduler's current load, and its counters since it began."""

    running: int
    queued: int
    max_sequences: int
    max_queue: int
    pages_total: int  # of KV cache, that there is room for
    pages_used: int  # reserved for the requests that run
    pages_kept: int  # in the prefix cache
    page_bytes: int
    prompt_tokens: int  # of the prompts that were read
    cached_tokens: int  # of those, found in the prefix cache
    restored_tokens: int  # of those, in pages on disk
    stored: StoreFigures  # of pages on disk
    generated_tokens: int
    drafted_tokens: int  # proposed ahead, and of them those that were chosen
    accepted_tokens: int
    finished: int
    cancelled: int
    failed: int
    refused: int  # because the queue was full
    steps: int
    step_seconds: float


class Scheduler:
    """Answers many requests at once with one model, on a thread of its own.

    At most ``max_sequences`` run, and an eighth more of clients that have none running; ``max_queue`` wait.
    ``prefill_chunk`` is how many prompt ids a step reads at most. ``state_bytes`` bounds the KV cache: the
    pages of running requests, reserved up to their last id before they start, and the prefix cache; None is
    room for max_sequences full contexts, or half of the machine's memory if that is less. ``drafting``
    proposes tokens of texts that decode, which a step verifies (speculative.py). ``prefixes`` has pages on
    disk, and is closed with the scheduler. ``on_step``, if set, is called after events were published, when
    the engine is about to compute. Raises UserError for an engine that reads one text only, that cannot
    verify drafts, or whose pages cannot be stored.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: TokenizerProtocol,
        *,
        max_sequences: int = 16,
        max_queue: int = 64,
        prefill_chunk: int = 256,
        state_bytes: int | None = None,
        drafting: Drafting | None = None,
        prefixes: PrefixStore | None = None,
    ) -> None:
        if drafting is not None and (why := check_rewinds(engine)) is not None:
            raise UserError(f"This model verifies no drafts: {why}")
        if not isinstance(engine, BatchedEngine):
            raise UserError("This engine reads one text only: it cannot serve several at once")
        if prefixes is not None and not isinstance(engine, Storable):
            raise UserError("Pages on disk are the runtime's alone, and another engine answers here")
        if min(max_sequences, prefill_chunk) < 1 or max_queue < 0:
            raise UserError("max_sequences and prefill_chunk must be 1 or more, and max_queue 0 or more")
        self.engine, self.tokenizer, self._vocab = engine, tokenizer, vocab_size(engine, tokenizer)
        self.max_sequences, self.max_queue = max_sequences, max_queue
        self.on_step: Callable[[], None] = lambda: None
        self._capacity = page_capacity(self.engine, max_sequences, state_bytes)
        self.prefix_cache = PrefixCache(self._capacity)
        self._budget = PrefillBudget(prefill_chunk)
        self._drafting = drafting
        self._turns = DecodeTurns(self.engine.weights_in_positions)
        self._queue: FairQueue[ScheduledSequence] = FairQueue()
        self._running: list[ScheduledSequence] = []
        self._present: dict[str, float] = {}  # when each client last had a request that ran
        self._counts: Counter[str] = Counter()
        self._step_seconds = 0.0
        self._closing = self._over = False
        self._wake = threading.Condition()
        self.restoring = None if prefixes is None else Restoring(prefixes, self.prefix_cache, self._wake)
        self._pages_taken = threading.Event()
        self._threads = [threading.Thread(target=self._work, name="cutaway-model", daemon=True)]
        if isinstance(self.engine, AllocatesAhead):
            more: Any = {"args": (self.engine,), "name": "cutaway-pages", "daemon": True}
            self._threads.append(threading.Thread(target=self._allocate, **more))
        for thread in self._threads:
            thread.start()

    # ---- from any thread -----------------------------------------------------------------------------------

    @property
    def drafts(self) -> bool:
        """Whether tokens are drafted ahead."""
        return self._drafting is not None

    def submit(self, request: Request) -> ResponseStream:
        """Queue a request; UserError, ContextFullError, QueueFullError or ShuttingDownError."""
        if request.edit is not None and not isinstance(self.engine, Editable):
            raise UserError("This engine cannot edit activations: only the PyTorch model can")
        if request.observation is not None and not isinstance(self.engine, Observable):
            raise UserError("This engine shows no activations of a text beside others")
        tokenizer, vocab = self.tokenizer, self._vocab
        request.settings.check(vocab)
        ids = check_prompt(request.ids, tokenizer, self.engine)
        if request.internals is not None:
            request.internals.check(self.engine.layers, vocab)
        stream = ResponseStream(request, self._notify)
        output = SequenceOutput(
            self.engine, tokenizer, ids, request.settings, request.constraint, request.drawn_logprobs
        )
        sequence = ScheduledSequence(stream, output, request.engine or self.engine)
        if sequence.pages_needed > self._capacity:
            raise UserError(
                f"The prompt of {len(ids)} ids and an answer of up to {output.max_tokens} need "
                f"{sequence.pages_needed} pages of state, and there is room for {self._capacity}: ask for "
                "fewer max_tokens"
            )
        with self._wake:
            if self._closing:
                raise ShuttingDownError
            starting = max(0, self.max_sequences - len(self._running))
            if not self._queue.has_room(request.client, self.max_queue, starting):
                self._counts["refused"] += 1
                raise QueueFullError(
                    f"The queue is full: {self.max_sequences} requests run and {self.max_queue} wait; "
                    "ask again in a while"
                    if len(self._queue) >= self.max_queue + starting
                    else f"{self._queue.count(request.client)} of your requests wait, as many as places are "
                    "free for others: ask again in a while"
                )
            self._queue.add(request.client, sequence, request.priority)
            self._wake.notify_all()
        return stream

    def paused(self) -> AbstractContextManager[Any]:
        """No step begins inside: requests that are submitted there begin together."""
        return self._wake

    def stats(self) -> SchedulerStats:
        """Its figures now."""
        with self._wake:
            counts = self._counts
            return SchedulerStats(
                running=len(self._running),
                queued=len(self._queue),
                max_sequences=self.max_sequences,
                max_queue=self.max_queue,
                pages_total=self._capacity,
                pages_used=self._reserved(),
                pages_kept=len(self.prefix_cache),
                page_bytes=self.engine.page_bytes,
                prompt_tokens=counts["prompt_tokens"],
                cached_tokens=counts["cached_tokens"],
                restored_tokens=counts["restored_tokens"],
                stored=self.restoring.figures if self.restoring else StoreFigures(),
                generated_tokens=counts["generated_tokens"],
                drafted_tokens=counts["drafted_tokens"],
                accepted_tokens=counts["accepted_tokens"],
                finished=counts["finished"],
                cancelled=counts["cancelled"],
                failed=counts["failed"],
                refused=counts["refused"],
                steps=counts["steps"],
                step_seconds=self._step_seconds,
            )

    def drain(self, seconds: float) -> int:
        """Take no new request, wait at most so long for the others, and cancel the rest; how many that is."""
        with self._wake:
            self._closing = True
            self._wake.wait_for(lambda: not self._running and not len(self._queue), seconds)
            waiting = self._queue.remove(lambda _: True)
            self._counts["cancelled"] += len(waiting)
            left = (*self._running, *waiting)
            cut_off = sum(not sequence.stream.cancelled for sequence in left)
            for sequence in left:
                sequence.stream.cancelled, sequence.stream.why = True, "the server stops"
            for sequence in waiting:  # the others end, and count, with the step under way
                sequence.stream.put(RequestCancelledError(sequence.stream.why))
            self._wake.notify_all()
        self.on_step()
        if threading.current_thread() not in self._threads:
            for thread in self._threads:  # afterwards nothing here holds the engine and the tokenizer
                thread.join()
            if self.restoring is not None:
                self.restoring.close()
        return cut_off

    def close(self) -> None:
        """Cancel everything within the current step."""
        self.drain(0)

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify_all()

    # ---- the thread that allocates -------------------------------------------------------------------------

    def _allocate(self, engine: AllocatesAhead) -> None:
        """Have pages ready, so that no step waits for the operating system's memory."""
        while not self._over:
            pages = (LOW if self._running else AHEAD) * self.max_sequences
            if not engine.make_ahead(min(self._capacity, pages), self._give_way):
                self._pages_taken.wait()
                self._pages_taken.clear()

    def _give_way(self) -> None:
        if self._running:
            time.sleep(PAUSE)

    # ---- the model's thread --------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._admit():
            try:
                self._step()
            except Exception as error:  # an internal error ends the running requests, and nothing else
                self._fail(list(self._running), error)
            if not self._running:
                self._pages_taken.set()  # and is idle: more may be ready for what comes
        self._over = True
        self._pages_taken.set()

    def _admit(self) -> bool:
        """Drop cancelled requests and start those there is room for. False once the scheduler is closed."""
        with self._wake:
            while True:
                self._drop_cancelled()
                while (sequence := self._next()) is not None:
                    self._running.append(sequence)
                    self.prefix_cache.capacity = self._capacity - self._reserved()
                    if self.prefix_cache.pages:
                        self.prefix_cache.trim()
                    sequence.start()
                if self._running:
                    return True
                self._wake.notify_all()
                self.on_step()
                if self._closing and not len(self._queue):
                    return False
                self._wake.wait()

    def _next(self) -> ScheduledSequence | None:
        """Take out the next request, if there is room for it: one that needs many pages is not overtaken."""
        if not self._queue.clients:
            return None
        blocked = {client for client in self._queue.clients if not self._may_run(client)}
        found = self._queue.first(blocked)
        if found is None or self._reserved() + found[1].pages_needed > self._capacity:
            return None
        self._queue.pop(blocked)
        return found[1]

    def _may_run(self, client: str) -> bool:
        """Whether one more of a client's requests may run.

        One client may have all places, so that a client none of whose requests run may start one beside them,
        of an eighth of the places more. A named client leaves an eighth of the pages.
        """
        own = [sequence.pages_needed for sequence in self._running if sequence.request.client == client]
        places = self.max_sequences + (0 if own else self.max_sequences // 8)
        left = not client or sum(own) < self._capacity - self._capacity // 8
        return len(self._running) < places and left

    def _reserved(self) -> int:
        return sum(sequence.pages_needed for sequence in self._running)

    def _drop_cancelled(self) -> None:
        gone = self._queue.remove(lambda sequence: sequence.stream.cancelled)
        gone += [sequence for sequence in self._running if sequence.stream.cancelled]
        self._running = [sequence for sequence in self._running if sequence not in gone]
        for sequence in gone:
            self._counts["cancelled"] += 1
            sequence.stream.put(RequestCancelledError(sequence.stream.why))

    def _step(self) -> None:
        """One call of the engine, then each sequence's next token and its publication."""
        started = time.perf_counter()
        able, unread = list[ScheduledSequence](), list[ScheduledSequence]()
        for sequence in self._running:
            (able if sequence.decoding else unread).append(sequence)
        if self.restoring is not None:
            unread = self.restoring.ready(unread)
        decoding = self._turns.choose(able)
        drafts = self._drafts(decoding) if not unread else [()] * len(decoding)
        drafted = time.perf_counter()
        chunks = [
            Chunk(sequence, [*sequence.unread(bool(draft)), *draft], draft=draft)
            for sequence, draft in zip(decoding, drafts, strict=True)
        ]
        waiting, shared = 0, self._is_shared()
        if unread:
            clients = [sequence.request.client for sequence in able]
            waiting = prompts_waiting(Counter(one.request.client for one in unread), set(clients))
            most = self._budget.allowed(len(decoding), waiting, shared)
            chunks += self._prefill_chunks(unread, clients, most)
        self.on_step()  # of the step before: its listeners work while the engine computes
        if not chunks and self.restoring is not None:  # every text waits for pages on disk
            self.restoring.wait()
            return
        watches = self._drafting.watches() if self._drafting is not None else ()
        try:
            forward(self.engine, chunks, watches)
        except Exception as error:
            self._fail([chunk.sequence for chunk in chunks], error)
            return
        read = len(chunks)
        if self._drafting is not None and watches:
            for chunk in chunks:
                start = chunk.sequence.state.length - len(chunk.ids)
                self._drafting.proposer.see(chunk.sequence.drafted, start, chunk.shown)
        if any(chunk.begins_page for chunk in chunks):
            self._pages_taken.set()
        for chunk in chunks:
            chunk.sequence.cache_pages(self.prefix_cache)
            if self.restoring is not None:
                self.restoring.store(chunk.sequence)
        chunks += self._forks(chunks, FORKS if shared else None)
        results = [_sample(chunk) for chunk in chunks]
        self._count_drafts(chunks)
        for chunk in chunks:
            self._count_prompt(chunk.sequence)
        pieces = [piece for result in results if not isinstance(result, Exception) for piece in result]
        self._count(generated_tokens=sum(piece.id is not None for piece in pieces))
        for chunk, result in zip(chunks, results, strict=True):
            self._publish(chunk.sequence, result)
        seconds = time.perf_counter() - started
        prompt_ids = sum(len(chunk.ids) for chunk in chunks[len(decoding) : read])
        tokens = sum(len(chunk.ids) for chunk in chunks[: len(decoding)])
        self._budget.record(tokens, prompt_ids, seconds, waiting)
        if self._drafting is not None and not unread:  # the proposer knows what drafting takes
            taken, count = time.perf_counter() - drafted, tokens - len(decoding)
            self._drafting.lengths.times.record(tokens, taken, count, bool(watches))
        with self._wake:
            self._counts["steps"] += 1
            self._step_seconds += seconds

    def _drafts(self, decoding: Sequence[ScheduledSequence]) -> list[Sequence[int]]:
        """The draft tokens of each sequence for this step, in which no prompt is read."""
        if self._drafting is None:
            return [()] * len(decoding)
        rooms = [sequence.draft_room() for sequence in decoding]
        return [*self._drafting.drafts([sequence.drafted for sequence in decoding], rooms)]

    def _count_drafts(self, chunks: Sequence[Chunk]) -> None:
        """Count what was drafted in a step, and learn from it."""
        for chunk in chunks:
            if chunk.draft and self._drafting is not None:
                drafted, accepted = len(chunk.draft), chunk.accepted
                self._drafting.lengths.update(chunk.sequence.drafted, drafted, accepted)
                self._count(drafted_tokens=drafted, accepted_tokens=accepted)

    def _is_shared(self) -> bool:
        """Whether several clients have requests that run, or had one lately.

        The next request of such a client must not find a long step under way.
        """
        now = time.monotonic()
        self._present |= {sequence.request.client: now for sequence in self._running}
        self._present = {client: at for client, at in self._present.items() if now - at <= LATELY}
        return len(self._present) > 1

    def _prefill_chunks(
        self, waiting: list[ScheduledSequence], decoding: Sequence[str], most: int
    ) -> list[Chunk]:
        """Choose at most this many prompt ids: each client has a fair part, its sequences even parts of it.
        A page or prompt that several share is read once. ``decoding``: the clients of sequences that decode.
        """
        size, claimed = self.engine.page, set()
        chosen: dict[str, list[ScheduledSequence]] = defaultdict(list)
        waiting.sort(key=lambda sequence: (sequence.state.length % size == 0, sequence.last_prefill_step))
        for sequence in waiting:
            sequence.reuse_pages(self.prefix_cache)
            shared = sequence.next_page or sequence.whole_prompt
            if shared is None or shared not in claimed:
                chosen[sequence.request.client].append(sequence)
                claimed.add(shared)
        chunks: list[Chunk] = []
        for client, part in fair_parts(chosen, decoding, most, self._budget.most).items():
            own = chosen[client]
            for left, sequence in zip(range(len(own), 0, -1), own, strict=True):
                if part > 0:
                    chunks.append(Chunk(sequence, sequence.next_prompt_ids(max(1, part // left))))
                    part -= len(chunks[-1].ids)
                    sequence.last_prefill_step = self._counts["steps"]
        return chunks

    def _forks(self, chunks: Sequence[Chunk], most: int | None) -> list[Chunk]:
        """For each prompt that was read to its end: the sequences that wait for it, with the same logits.

        ``most`` of them a step, where other clients wait for its end: those that are left read it once more.
        """
        reading, forks = [chunk.sequence for chunk in chunks], []
        waiting = [one for one in self._running if one not in reading and not one.decoding]
        for chunk in chunks:
            read, prompt = chunk.sequence, chunk.sequence.whole_prompt
            if prompt is None or read.state.length != len(read.prompt):
                continue
            for sequence in [one for one in waiting if one.whole_prompt == prompt][:most]:
                waiting.remove(sequence)
                sequence.fork(read)
                forks.append(replace(chunk, sequence=sequence))
        return forks

    def _publish(self, sequence: ScheduledSequence, result: list[Piece] | Exception) -> None:
        """Publish new pieces; a sequence leaves at its end."""
        if isinstance(result, Exception):
            self._fail([sequence], result)
            return
        if sequence.output.finish_reason is not None:
            self._leave(sequence)
            self._count(finished=1)
        for piece in result:
            sequence.stream.put(piece)

    def _fail(self, sequences: Sequence[ScheduledSequence], error: Exception) -> None:
        for sequence in sequences:
            self._leave(sequence)
            self._count(failed=1)
            sequence.stream.put(error)

    def _leave(self, sequence: ScheduledSequence) -> None:
        with self._wake:
            self._running.remove(sequence)
            self.prefix_cache.capacity = self._capacity - self._reserved()

    def _count_prompt(self, sequence: ScheduledSequence) -> None:
        """Count what was read of a prompt since it was counted last, for the client as for the server."""
        stream, read = sequence.stream, min(sequence.state.length, len(sequence.prompt))
        if read > stream.read:
            cached = min(sequence.cached_tokens, read)
            self._count(prompt_tokens=read - stream.read, cached_tokens=cached - stream.cached)
            self._count(restored_tokens=sequence.restored_tokens)
            stream.read, stream.cached, sequence.restored_tokens = read, cached, 0

    def _count(self, **more: int) -> None:
        with self._wake:
            self._counts.update(more)


def _sample(chunk: Chunk) -> list[Piece] | Exception:
    """A sequence's new pieces after a step, none within its prompt; an error ends this sequence alone."""
    sequence, logits = chunk.sequence, chunk.logits
    assert logits is not None
    start = sequence.state.length - len(chunk.ids)
    try:
        if sequence.request.prompt_logprobs is not None and start < len(sequence.prompt):
            sequence.add_prompt_logprobs(start, logits)
        if not chunk.samples:
            return []
        pieces, chunk.accepted = sequence.append(logits, chunk.draft, chunk.inside)
        return pieces
    except Exception as error:
        return error
