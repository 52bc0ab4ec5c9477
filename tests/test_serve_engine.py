"""The scheduler: whatever runs beside it, an answer is the one its request has alone; and who waits for whom.

Where the order of things matters the engine is one whose steps a test lets pass one by one."""

from __future__ import annotations

import asyncio
import queue
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cutaway import native
from cutaway.errors import OperationalError, UserError
from cutaway.generate.batch import scheduler as scheduling
from cutaway.generate.batch.chunk import Chunk
from cutaway.generate.batch.many_prompts import answer_all, generate_batch
from cutaway.generate.batch.prefix_cache import PrefixCache, cache_scope
from cutaway.generate.batch.request import (
    ContextFullError,
    Generation,
    Piece,
    QueueFullError,
    Request,
    RequestCancelledError,
    ResponseStream,
    ShuttingDownError,
)
from cutaway.generate.batch.scheduler import AHEAD, LOW, Scheduler
from cutaway.generate.batch.sequence import ScheduledSequence
from cutaway.generate.batch.step_budget import LEAST, SHORT, STRETCH, PrefillBudget
from cutaway.generate.decode import finish, generate
from cutaway.generate.internals import Internals
from cutaway.generate.sample import log_softmax
from cutaway.generate.sampling_params import SamplingParams
from cutaway.serve.work_pool import LoopBridge
from tests import test_runtime as tiny
from tests.test_decode import END, VOCAB, Bytes, Hashing, Held

needs_core = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)
POISON, NOTHING = 250, 251  # ids that break a step, and that are followed by no number


@pytest.fixture(autouse=True, scope="module")
def _short_pages() -> Iterator[None]:
    """The PyTorch model's pages made as short as the runtime's, so that short texts share some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cutaway.model.engine.CHUNK", 128)
        yield


class Paged(Hashing):
    """Reads several texts at once, and lets pass one step for each ``allow``."""

    page = 4
    page_bytes = 4
    weights_in_positions = 1 << 30
    scope = b""
    layers = 3

    def __init__(self, grid: int = 1, max_context: int = 64, gated: bool = False) -> None:
        super().__init__(max_context)
        self.grid = grid
        self.calls: list[list[tuple[int, ...]]] = []
        self.gate = threading.Semaphore(0) if gated else None
        self.entered = threading.Semaphore(0)

    def read(
        self, texts: Sequence[Sequence[int]], states: Sequence[Held], wanted: Sequence[int]
    ) -> np.ndarray:
        self.calls.append([tuple(text) for text in texts])
        self.entered.release()
        if self.gate is not None:
            self.gate.acquire()
        if any(POISON in text for text in texts):
            raise MemoryError("no memory for this")
        rows = []
        for text, state in zip(texts, states, strict=True):
            assert self.grid == 1 or len(state.ids) % self.grid == 0 or len(text) == 1
            for id in text:
                state.ids.append(id)
                rows.append(np.full(VOCAB, np.nan) if id == NOTHING else self.after(state.ids))
        return np.array([rows[at] for at in wanted], np.float32).reshape(-1, VOCAB)

    def watch(self, *asked: Any) -> tuple[np.ndarray, list[np.ndarray]]:
        raise NotImplementedError

    def after(self, ids: list[int]) -> np.ndarray:
        logits = super().after(ids)
        logits[[POISON, NOTHING]] = -100.0
        return logits

    def keep(self, state: Held, page: int) -> list[int]:
        assert self.grid == 1 or len(state.ids) == (page + 1) * self.page
        return state.ids[: (page + 1) * self.page]

    def resume(self, kept: Sequence[list[int]]) -> Held:
        state = Held()
        state.ids = list(kept[-1]) if kept else []
        return state

    def fork(self, state: Held) -> Held:
        return self.resume([state.ids])

    def pass_step(self) -> None:
        """Lets the step that is under way end, and waits for the next to begin."""
        assert self.gate is not None
        self.gate.release()
        assert self.entered.acquire(timeout=60)


class Words(Bytes):
    """As many tokens as the tiny models have; the last ends."""

    eos_ids = (100,)

    def __len__(self) -> int:
        return 101


@contextmanager
def scheduler(engine: Any, tokenizer: Any = None, **limits: Any) -> Iterator[Scheduler]:
    made = Scheduler(engine, tokenizer or Bytes(), **limits)
    try:
        yield made
    finally:
        if getattr(engine, "gate", None) is not None:
            engine.gate.release(10**6)
        made.close()


def request(ids: Sequence[int], **options: Any) -> Request:
    of_request = {
        name: options.pop(name)
        for name in ("client", "priority", "constraint", "prompt_logprobs", "internals", "cache_scope")
        if name in options
    }
    return Request(tuple(ids), SamplingParams(**options), **of_request)


def shown(of: Generation) -> tuple:
    return of.text, of.ids, of.logprobs, of.top_logprobs, of.finish_reason, of.stop


# ---- as if it were alone -----------------------------------------------------------------------------------


def some_jobs(count: int, seed: int, begins: Sequence[int], longest: int) -> list[Request]:
    """Greedy and random ones, of all lengths, some that begin alike."""
    dice = random.Random(seed)
    begin = [dice.randrange(100) for _ in range(280)]
    requests = []
    for n in range(count):
        own = [dice.randrange(100) for _ in range(dice.choice((1, 2, 9, 60)))]
        ids = begin[: dice.choice(begins)] + own
        requests.append(
            request(
                ids,
                max_tokens=dice.choice((1, 3, longest)),
                temperature=dice.choice((0, 0.7, 1.3)),
                top_p=dice.choice((1, 0.9)),
                seed=n,
                logprobs=dice.choice((0, 3)),
                frequency_penalty=dice.choice((0, 0.5)),
                stop=["a"] if n % 3 == 0 else [],
            )
        )
    return requests


def engine(name: str) -> Any:
    of = tiny.config("gemma3" if name == "runtime" else "llama")
    entries = tiny.tensors(of)
    return tiny.RuntimeEngine(of, entries) if name == "runtime" else tiny.definition(of, entries)


@needs_core
@pytest.mark.parametrize("name", ["runtime", "pytorch"])
def test_an_answer_is_the_same_as_alone_whatever_joins_and_leaves(name: str):
    reads, dice = engine(name), random.Random(7)
    requests = (
        some_jobs(20, 1, (0, 128, 129, 200, 280), 12) if name == "runtime" else some_jobs(5, 3, (0, 130), 4)
    )
    alone = [shown(finish(generate(reads, Words(), each.ids, each.settings))) for each in requests]
    with scheduler(reads, Words(), max_sequences=5, prefill_chunk=50) as serves:
        found: dict[int, tuple] = {}

        def ask(n: int) -> None:
            gone = serves.submit(requests[(n * 7) % len(requests)])
            stream = serves.submit(requests[n])
            if n % 2:
                next(iter(gone))
            gone.cancel()
            found[n] = shown(finish(stream))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(requests))]
        dice.shuffle(threads)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        figures = serves.stats()
    assert [found[n] for n in range(len(requests))] == alone
    assert figures.cached_tokens > 0
    assert (figures.running, figures.queued, figures.failed, figures.pages_used) == (0, 0, 0, 0)
    assert figures.finished + figures.cancelled == 2 * len(requests)


@needs_core
@pytest.mark.parametrize("name", ["runtime", "pytorch"])
def test_a_batch_of_prompts_gives_each_what_it_gets_alone(name: str):
    reads, settings = engine(name), SamplingParams(max_tokens=6, temperature=1, seed=3, logprobs=2)
    prompts = [tiny.IDS[:130], [5], [*tiny.IDS[:128], 7], [9, 8, 7], tiny.IDS[:140]]
    alone = [shown(finish(generate(reads, Words(), ids, settings))) for ids in prompts]
    made = generate_batch(reads, Words(), prompts, settings, max_sequences=2)
    assert [shown(each) for each in made] == alone
    assert made[2].timings.prefill_tokens == 1  # its first page was read for another
    assert generate_batch(reads, Words(), [], settings) == []


def test_a_batch_with_a_prompt_that_cannot_be_read_leaves_no_thread_behind():
    before = set(threading.enumerate())  # a server of other tests may still run
    with pytest.raises(UserError, match="outside the model's 0 to 256"):
        generate_batch(Paged(), Bytes(), [[1], [VOCAB]], SamplingParams(max_tokens=2))
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "cutaway-model"]


@pytest.mark.parametrize("grid", [1, 4])
def test_pages_are_shared_within_a_cache_scope_alone(grid: int):
    ids, reads = [*range(1, 14)], Paged(grid)
    mine, other, salted = cache_scope(b"a", None), cache_scope(b"b", None), cache_scope(b"a", "salt")
    assert len({mine, other, salted, cache_scope(b"b", "salt"), cache_scope(b"", "a")}) == 5
    with scheduler(reads) as serves:
        read = []
        for scope in (mine, other, salted, mine, other, salted):
            done = finish(serves.submit(request(ids, max_tokens=2, cache_scope=scope)))
            assert shown(done) == shown(finish(generate(Paged(), Bytes(), ids, SamplingParams(max_tokens=2))))
            read.append(done.timings.prefill_tokens)
        assert read == [13, 13, 13, 1, 1, 1]
        assert serves.stats().cached_tokens == 3 * 12


def test_a_page_that_is_being_read_is_waited_for_within_a_cache_scope_alone():
    reads, ids = Paged(gated=True), [*range(1, 14)]
    with scheduler(reads) as serves:
        first = serves.submit(request([9], max_tokens=1))
        assert reads.entered.acquire(timeout=60)
        scopes = (cache_scope(b"a", None), cache_scope(b"a", None), cache_scope(b"b", None))
        streams = [serves.submit(request(ids, max_tokens=1, cache_scope=scope)) for scope in scopes]
        reads.gate.release(1000)
        finish(first)
        assert sorted(finish(stream).timings.prefill_tokens for stream in streams) == [0, 13, 13]


@needs_core
@pytest.mark.parametrize("name", ["runtime", "pytorch"])
def test_sharing_what_texts_have_in_common_changes_no_bit(name: str):
    reads, begin = engine(name), tiny.IDS[:258]
    requests = [request([*begin, n], max_tokens=3, temperature=1, seed=n, logprobs=101) for n in range(3)]
    with scheduler(reads, Words(), state_bytes=reads.page_bytes * 3, max_sequences=1) as apart:
        alone = []
        for each in requests:  # the other prompt takes all pages, so that nothing is kept
            finish(apart.submit(request(tiny.IDS[::-1][:290], max_tokens=2)))
            alone.append(shown(finish(apart.submit(each))))
        assert apart.stats().cached_tokens == 0
    with scheduler(reads, Words(), prefill_chunk=1000) as together:
        streams = [together.submit(each) for each in requests]
        assert [shown(finish(stream)) for stream in streams] == alone
        assert [shown(finish(together.submit(each))) for each in requests] == alone
        assert together.stats().cached_tokens == 256 * 5
    assert [shown(finish(generate(reads, Words(), each.ids, each.settings))) for each in requests] == alone


@needs_core
def test_a_text_that_goes_back_into_a_borrowed_page_writes_into_its_own():
    reads = engine("runtime")
    lender = reads.new_state()
    reads.prefill(tiny.IDS[:256], lender)
    expected = reads.step(5, lender.snapshot())
    borrower = reads.resume([reads.keep(lender, page) for page in (0, 1)])
    assert np.array_equal(reads.step(5, borrower), expected)
    borrower.truncate(200)
    reads.prefill(tiny.IDS[:60], borrower)
    assert np.array_equal(reads.step(5, lender), expected)


@needs_core
@pytest.mark.parametrize("name", ["runtime", "pytorch"])
def test_the_prompts_own_probabilities(name: str):
    reads, ids = engine(name), tiny.IDS[:150]
    with scheduler(reads, Words(), prefill_chunk=40) as serves:
        finish(serves.submit(request(ids, max_tokens=1)))  # its pages are kept, and of no use here
        stream = serves.submit(request(ids, max_tokens=3, prompt_logprobs=2))
        finish(stream)
        assert finish(serves.submit(request(ids, max_tokens=3))).ids == finish(stream).ids
    expected = log_softmax_rows(reads.logits(ids))
    assert stream.prompt_logprobs[0] is None
    assert len(stream.prompt_logprobs) == len(ids)
    for at in range(1, len(ids)):
        value, best = stream.prompt_logprobs[at]  # type: ignore[misc]
        assert value == pytest.approx(expected[at - 1, ids[at]], abs=1e-4)
        assert [id for id, _ in best] == np.argsort(-expected[at - 1], kind="stable")[:2].tolist()


def log_softmax_rows(logits: np.ndarray) -> np.ndarray:
    return np.array([log_softmax(row) for row in logits])


@pytest.mark.parametrize("grid", [1, 4])
def test_a_page_that_several_texts_begin_with_is_read_once(grid: int):
    reads = Paged(grid, gated=True)
    begin = list(range(1, 15))
    with scheduler(reads, max_sequences=6) as serves:
        first = serves.submit(request([9], max_tokens=1))
        assert reads.entered.acquire(timeout=60)
        streams = [serves.submit(request([*begin, 100 + n], max_tokens=2)) for n in range(4)]
        reads.gate.release(1000)
        finish(first)
        for n, stream in enumerate(streams):
            alone = finish(generate(Paged(), Bytes(), [*begin, 100 + n], SamplingParams(max_tokens=2)))
            assert shown(finish(stream)) == shown(alone)
        assert serves.stats().cached_tokens == 3 * 12
    read = [id for call in reads.calls for text in call for id in text]
    assert sum(id in begin[:12] for id in read if id != 9) == 11 + read.count(1) - 1


def test_pages_alike_after_different_beginnings_are_not_the_same():
    one, other, same, last = [1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]
    with scheduler(Paged()) as serves:
        for ids in ([*one, *same, 17], [*other, *last, 17], [*other, *same, 17], [*other, *same]):
            alone = finish(generate(Paged(), Bytes(), ids, SamplingParams(max_tokens=3)))
            assert shown(finish(serves.submit(request(ids, max_tokens=3)))) == shown(alone)
        assert serves.stats().cached_tokens == 4 + 4  # of the last, not its last page: an id is left to read


def test_an_answers_pages_serve_the_next_turn():
    with scheduler(Paged()) as serves:
        first = finish(serves.submit(request(range(6), max_tokens=8, ignore_eos=True)))
        turn = [*range(6), *first.ids, 1, 2]
        assert shown(finish(serves.submit(request(turn, max_tokens=2)))) == shown(
            finish(generate(Paged(), Bytes(), turn, SamplingParams(max_tokens=2)))
        )
        assert serves.stats().cached_tokens == 12
    with scheduler(Paged(grid=4)) as serves:  # what was read one by one is not what is read at once
        finish(serves.submit(request(range(6), max_tokens=8, ignore_eos=True)))
        finish(serves.submit(request(turn, max_tokens=2)))
        assert serves.stats().cached_tokens == 4


# ---- looking inside ----------------------------------------------------------------------------------------


def whole(engines: dict[str, Any]) -> Any:
    """Everything the PyTorch model says about a text, whose engines these are."""
    from cutaway.inspect.trace import Trace
    from tests.small import Bytes as Text

    return Trace.of(engines["pytorch"].model, Text(), tiny.IDS[:150])


@needs_core
@pytest.mark.parametrize("shape", ["llama", "gemma3"])
def test_what_is_seen_inside_is_what_the_definition_computes(shape: str):
    of = tiny.config(shape)
    entries = tiny.tensors(of)
    engines = {"runtime": tiny.RuntimeEngine(of, entries), "pytorch": tiny.definition(of, entries)}
    trace = whole(engines)
    for name, reads in engines.items():
        states = [reads.resume([]), reads.resume([])]
        reads.read([tiny.IDS[:140], tiny.IDS[:3]], states, [])
        other = [states[0].snapshot(), states[1].snapshot()]
        texts = [tiny.IDS[140:150], tiny.IDS[3:5]]
        rows, after = [9, 11, 9, 3], [2, 2, 1, 0]
        watched = [(9, 1), (3, 0), (11, 2)]
        logits, patterns = reads.watch(texts, states, rows, after, watched)
        assert np.array_equal(logits[:2], reads.read(texts, other, rows[:2])), name  # watching changes no bit
        for (place, layer), pattern in zip(watched, patterns, strict=True):
            at = 140 + place if place < 10 else place - 10 + 3
            expected = trace[f"blocks.{layer}.attention.pattern"].reshape(-1, 150, 150)[:, at]
            assert pattern.shape == (len(expected), at + 1)
            assert np.abs(pattern - expected[:, : at + 1]).max() < 2e-3, (name, layer)
            assert np.allclose(pattern.sum(1), 1, atol=1e-5)
        for row, at, layer in ((2, 149, 1), (3, 143, 0)):
            stream = torch.from_numpy(trace[f"blocks.{layer}.out"]).reshape(150, -1)[at]
            expected = engines["pytorch"].model.logits(stream[None, None])[0, 0].detach().numpy()
            assert np.abs(logits[row] - expected).max() < 5e-3 * np.abs(expected).max(), (name, layer)


@needs_core
@pytest.mark.parametrize("name", ["runtime", "pytorch"])
def test_internals_come_with_each_token_and_change_none(name: str):
    reads = engine(name)
    looks = Internals(layers=(2, 0), lens=3)
    with scheduler(reads, Words()) as serves:
        plain = finish(serves.submit(request(tiny.IDS[:140], max_tokens=4)))
        beside = serves.submit(request(tiny.IDS[:9], max_tokens=4, prompt_logprobs=1))
        watched = serves.submit(request(tiny.IDS[:140], max_tokens=4, internals=looks))
        later = serves.submit(request(tiny.IDS[5:20], max_tokens=4))
        pieces = list(watched)
        alone = finish(generate(reads, Words(), tiny.IDS[5:20], SamplingParams(max_tokens=4)))
        assert shown(finish(later)) == shown(alone)
        assert shown(pieces[-1].generation) == shown(plain)
        assert all(piece.inside == () for piece in beside)
    for n, piece in enumerate(pieces[:-1]):
        assert [seen.layer for seen in piece.inside] == [2, 0]
        last = piece.inside[0]  # the last layer's lens is what the model says
        assert last.lens[0][0] == piece.id
        assert last.lens[0][1] == pytest.approx(np.exp(piece.logprob), rel=1e-4)
        assert last.entropy is not None
        assert 0 < last.entropy < np.log(101)
        for head in last.heads:
            weights = [weight for _, weight in head.positions]
            assert weights == sorted(weights, reverse=True)
            assert 0 < sum(weights) <= 1 + 1e-5
            assert max(at for at, _ in head.positions) < 140 + n
            assert 0 <= head.entropy < np.log(140 + n)


@pytest.mark.parametrize(
    ("looks", "words"),
    [
        (Internals(layers=(3,)), "the layer 3: the model's go from 0 to 2"),
        (Internals(layers=()), "at least one layer"),
        (Internals(layers=(1, 1)), "each of them once"),
        (Internals(layers=(1,), lens=10**6), "1000000 tokens"),
    ],
)
def test_internals_that_are_not_there_are_refused(looks: Internals, words: str):
    with scheduler(Paged()) as serves, pytest.raises(UserError, match=words):
        serves.submit(request([1], internals=looks))


def test_nothing_is_watched_unasked():
    with scheduler(Paged()) as serves:  # whose watch() raises
        assert len(finish(serves.submit(request([1], max_tokens=2))).ids) == 2


# ---- who waits for whom ------------------------------------------------------------------------------------


def test_as_many_run_and_wait_as_may():
    reads = Paged(gated=True)
    with scheduler(reads, max_sequences=2, max_queue=3) as serves:
        streams = [serves.submit(request([n], max_tokens=1)) for n in range(5)]
        with pytest.raises(QueueFullError, match="2 requests run and 3 wait"):
            serves.submit(request([9]))
        streams[4].cancel()
        reads.gate.release(1000)
        for stream in streams[:4]:
            finish(stream)
        with pytest.raises(RequestCancelledError):
            finish(streams[4])
        assert len(finish(serves.submit(request([9], max_tokens=2))).ids) == 2
        assert serves.stats().refused == 1


def test_clients_take_turns():
    ended: list[str] = []
    reads = Paged(gated=True)
    with scheduler(reads, max_sequences=1) as serves:
        for n, client in enumerate("aaaabb"):
            name = f"{client}{n}"
            stream = serves.submit(request([n], max_tokens=1, client=client))
            stream.subscribe(lambda event, name=name: ended.append(name) if event.generation else None)
        reads.gate.release(1000)
        serves.drain(10)
    assert ended == ["a0", "a1", "b4", "a2", "b5", "a3"] or ended == ["a0", "b4", "a1", "b5", "a2", "a3"]


def test_a_long_prompt_stops_no_answer():
    """Each step that reads of the long prompt brings everyone else a token, and reads no more than it may."""
    reads = Paged(max_context=400, gated=True)
    with scheduler(reads, prefill_chunk=24) as serves:
        others = [serves.submit(request([n], max_tokens=300, ignore_eos=True)) for n in range(3)]
        assert reads.entered.acquire(timeout=60)
        for _ in range(3):
            reads.pass_step()
        long = serves.submit(request([7] * 200, max_tokens=1))
        before = len(reads.calls)
        reads.gate.release(1000)
        finish(long)
        for other in others:
            finish(other)
    steps = [
        call for call in reads.calls[before:] if any(set(text) == {7} and len(text) > 1 for text in call)
    ]
    assert len(steps) >= 200 // 24
    for call in steps:
        assert sum(len(text) == 1 for text in call) >= 3
        assert sum(len(text) for text in call if len(text) > 1) <= 24


def test_all_tokens_of_a_step_are_chosen_before_any_is_sent():
    engine, chosen = Paged(gated=True), []
    with scheduler(engine) as made:
        streams = [made.submit(request([n + 1], max_tokens=5, ignore_eos=True)) for n in range(3)]

        def receive(piece: Piece) -> None:
            if piece.id is not None:
                chosen.append(sorted(len(sequence.output.pieces) for sequence in sequences))

        assert engine.entered.acquire(timeout=60)
        while len(made._running) < 3:
            engine.pass_step()
        sequences = list(made._running)
        for stream in streams:
            stream.subscribe(receive)
        chosen.clear()
        engine.pass_step()
        assert len(chosen) == 3 and chosen[0] == chosen[1] == chosen[2]


def test_who_listens_is_woken_once_a_step_and_for_the_last_of_it():
    engine, streams, heard = Paged(gated=True), [], []
    with scheduler(engine) as made:
        made.on_step = lambda: heard.append([len(stream._events) for stream in streams])
        streams += [made.submit(request([n + 1], max_tokens=3, ignore_eos=True)) for n in range(3)]
        assert engine.entered.acquire(timeout=60)
        while len(made._running) < 3:
            engine.pass_step()
        heard.clear()
        engine.pass_step()
        assert len(heard) == 1
        engine.gate.release(10**6)
        for stream in streams:
            finish(stream)
        made.drain(10)
    assert heard[-1] == [4, 4, 4]  # three tokens and the end of each, though no step came after


def test_events_come_to_the_loop_in_their_order_and_wake_it_once() -> None:
    async def heard() -> tuple[list[int], int]:
        post, queue, woken = LoopBridge(), asyncio.Queue(), []
        put = post.listener(queue, 7)
        put(0)
        post.send()  # without a loop yet
        post.deliver()
        loop = asyncio.get_running_loop()
        wake = loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *work: (woken.append(work), wake(*work))[1]

        def receive() -> None:
            for event in range(1, 5):
                put(event)
            post.send()
            post.send()

        thread = threading.Thread(target=receive)
        thread.start()
        thread.join()
        got = [event for which, event in [await queue.get() for _ in range(5)] if which == 7]
        del loop.call_soon_threadsafe
        return got, len(woken)

    assert asyncio.run(heard()) == ([0, 1, 2, 3, 4], 2)


def test_memory_is_made_ahead_when_the_server_starts_and_after_steps() -> None:
    class Makes(Paged):
        asked: queue.Queue[int] = queue.Queue()

        def make_ahead(self, pages: int, pause: Callable[[], None]) -> bool:
            self.asked.put(pages)
            return False

    engine, others = Makes(), set(threading.enumerate())  # a server of other tests may still run
    with scheduler(engine, max_sequences=3) as made:
        assert engine.asked.get(timeout=60) == 3 * AHEAD
        finish(made.submit(request([1, 2], max_tokens=2)))
        assert engine.asked.get(timeout=60) in (3 * AHEAD, 3 * LOW)
        (making,) = [t for t in {*threading.enumerate()} - others if t.name == "cutaway-pages"]
    assert not making.is_alive()


def test_a_closed_scheduler_has_no_thread_that_holds_its_engine() -> None:
    class Makes(Paged):
        making, may_end = threading.Event(), threading.Event()

        def make_ahead(self, pages: int, pause: Callable[[], None]) -> bool:
            self.making.set()
            assert self.may_end.wait(60)
            return False

    engine = Makes()
    with scheduler(engine) as made:
        assert engine.making.wait(60)
        closing = threading.Thread(target=made.close)
        closing.start()
        closing.join(0.2)
        assert closing.is_alive()  # waits for the page that is being made
        engine.may_end.set()
        closing.join(60)
        assert not closing.is_alive()


@pytest.mark.parametrize(
    ("length", "read", "begins"),
    [(1, 1, True), (4, 4, True), (4, 3, False), (4, 1, False), (5, 1, True), (8, 3, False), (9, 9, True)],
)
def test_a_step_begins_a_page_with_the_first_id_behind_a_full_one(length: int, read: int, begins: bool):
    """Then alone is the thread woken that makes pages; ``length`` counts what is read by then."""
    state, engine = SimpleNamespace(length=length - read), SimpleNamespace(page=4)
    asked = SimpleNamespace(prompt_logprobs=None, observation=None, internals=None)
    sequence = object.__new__(ScheduledSequence)
    vars(sequence).update(state=state, engine=engine, prompt=[7] * length, request=asked)
    assert Chunk(sequence, [7] * read).begins_page is begins


def test_short_prompts_do_not_wait_for_a_long_one():
    reads = Paged(max_context=400, gated=True)
    with scheduler(reads, prefill_chunk=16) as serves:
        long = serves.submit(request([7] * 300, max_tokens=1))
        assert reads.entered.acquire(timeout=60)
        short = serves.submit(request([8, 9, 10], max_tokens=1))
        reads.gate.release(4)  # of the nineteen or so that the long one takes
        finish(short)
        assert not long.ended
        reads.gate.release(1000)
        finish(long)


def test_what_is_kept_stays_within_its_room():
    reads = Paged()
    with scheduler(reads, state_bytes=4 * 8, max_sequences=4) as serves:
        for n in range(6):
            finish(serves.submit(request([n] * 13, max_tokens=4)))
            figures = serves.stats()
            assert figures.pages_kept <= figures.pages_total == 8
        with pytest.raises(UserError, match="need 10 pages of state, and there is room for 8"):
            serves.submit(request([1] * 13, max_tokens=25))
        streams = [
            serves.submit(request([n] * 13, max_tokens=12)) for n in range(5)
        ]  # six pages each: one by one
        for n, stream in enumerate(streams):
            assert shown(finish(stream)) == shown(
                finish(generate(Paged(), Bytes(), [n] * 13, SamplingParams(max_tokens=12)))
            )


def test_prefixes_let_go_of_the_end_before_the_beginning():
    kept = PrefixCache(3)
    kept.add([b"a"], 1)
    kept.add([b"a", b"b"], 2)
    kept.add([b"a", b"b", b"c"], 3)
    kept.add([b"x"], 4)
    assert [kept.get(name) for name in (b"a", b"b", b"c", b"x")] == [1, 2, None, 4]
    kept.capacity = 1
    kept.trim()
    assert len(kept) == 1


def test_the_pace_keeps_a_step_within_its_stretch():
    budget = PrefillBudget(256)
    assert budget.allowed(0) == 256
    for _ in range(50):
        budget.record(4, 0, 0.030)
        budget.record(4, 100, 0.130)
    assert budget.allowed(4) == pytest.approx((STRETCH - 1) * 30, abs=1)
    for _ in range(50):
        budget.record(4, 100, 9.0)
    assert budget.allowed(4) == LEAST


# ---- leaving early -----------------------------------------------------------------------------------------


def test_a_cancelled_answer_is_in_no_further_step():
    reads = Paged(gated=True)
    with scheduler(reads) as serves:
        gone = serves.submit(request([5], max_tokens=50, ignore_eos=True))
        assert reads.entered.acquire(timeout=60)
        stays = serves.submit(request([6], max_tokens=6, ignore_eos=True))
        for _ in range(2):
            reads.pass_step()
        gone.cancel()
        before = len(reads.calls)
        reads.gate.release(1000)
        with pytest.raises(RequestCancelledError):
            finish(gone)
        alone = finish(generate(Paged(), Bytes(), [6], SamplingParams(max_tokens=6, ignore_eos=True)))
        assert shown(finish(stays)) == shown(alone)
        assert all(len(call) == 1 for call in reads.calls[before:])
        assert serves.stats().cancelled == 1
        gone.cancel()
        stays.cancel()


def test_a_drained_scheduler_ends_what_it_has_and_takes_nothing():
    with scheduler(Paged()) as serves:
        streams = [serves.submit(request([n], max_tokens=20, ignore_eos=True)) for n in range(20)]
        serves.drain(30)
        assert all(len(finish(stream).ids) == 20 for stream in streams)
        with pytest.raises(ShuttingDownError):
            serves.submit(request([1]))


def test_what_does_not_end_in_time_is_stopped():
    reads = Paged(gated=True)
    with scheduler(reads, max_sequences=1) as serves:
        streams = [serves.submit(request([n], max_tokens=20)) for n in range(3)]
        assert reads.entered.acquire(timeout=60)
        threading.Timer(0.2, reads.gate.release, (1000,)).start()
        serves.drain(0)
        for stream in streams:
            with pytest.raises(RequestCancelledError, match="the server stops"):
                finish(stream)


# ---- what goes wrong ---------------------------------------------------------------------------------------


def test_a_step_that_fails_ends_its_requests_only():
    with scheduler(Paged(), max_sequences=1) as serves:
        broken = serves.submit(request([1, POISON], max_tokens=3))
        fine = serves.submit(request([1], max_tokens=3))
        with pytest.raises(MemoryError, match="no memory for this"):
            finish(broken)
        assert len(finish(fine).ids) == 3
        assert serves.stats().failed == 1


def test_logits_that_are_no_numbers_end_one_request():
    with scheduler(Paged()) as serves:
        streams = [serves.submit(request([id], max_tokens=3)) for id in (1, NOTHING, 2)]
        with pytest.raises(OperationalError, match="broken"):
            finish(streams[1])
        assert [len(finish(streams[n]).ids) for n in (0, 2)] == [3, 3]


class Only:
    """May only say what it is receive to, and is done then."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = list(ids)

    def mask(self, logits: np.ndarray) -> None:
        keep = logits[self.ids[0]]
        logits[:] = -np.inf
        logits[self.ids[0]] = keep

    def accept(self, id: int) -> None:
        assert self.ids.pop(0) == id

    @property
    def done(self) -> bool:
        return not self.ids


def test_a_constraint_shapes_its_own_answer():
    with scheduler(Paged()) as serves:
        bound = serves.submit(request([1], temperature=1, seed=0, constraint=Only(b"yes"), logprobs=1))
        free = serves.submit(request([1], max_tokens=3))
        broken = serves.submit(request([1], constraint=Only([])))
        done = finish(bound)
        assert (done.text, done.finish_reason, done.stop) == ("yes", "stop", None)
        logits = Paged().after([1])
        assert done.logprobs[0] == pytest.approx(float(log_softmax(logits)[ord("y")]), abs=1e-5)
        assert done.top_logprobs[0][0][0] == int(
            np.argmax(logits)
        )  # of the model itself, whatever is allowed
        assert shown(finish(free)) == shown(
            finish(generate(Paged(), Bytes(), [1], SamplingParams(max_tokens=3)))
        )
        with pytest.raises(IndexError):
            finish(broken)


def test_who_subscribes_late_hears_everything_in_order():
    with scheduler(Paged()) as serves:
        stream = serves.submit(request([1], max_tokens=5))
        pieces = list(stream)
        heard: list[Piece | Exception] = []
        stream.subscribe(heard.append)
        assert heard == pieces
        assert list(stream) == pieces


def test_a_listener_that_raises_stops_its_request():
    def deaf(event: object) -> None:
        raise RuntimeError("the loop is closed")

    reads = Paged(gated=True)
    with scheduler(reads) as serves:
        stream = serves.submit(request([1], max_tokens=40, ignore_eos=True))
        stream.subscribe(deaf)
        reads.gate.release(1000)
        with pytest.raises(RequestCancelledError):
            finish(stream)
        assert len(finish(serves.submit(request([2], max_tokens=2))).ids) == 2


@pytest.mark.parametrize(
    ("ids", "options", "error", "words"),
    [
        ([1] * 64, {}, ContextFullError, "64 ids long and the model's context holds 64"),
        ([], {}, UserError, "prompt is empty"),
        ([VOCAB], {}, UserError, "outside the model's 0 to 256"),
        ([1], {"logit_bias": {VOCAB: 1.0}}, UserError, "names the id 257"),
    ],
)
def test_what_cannot_be_honoured_is_refused_at_once(ids, options, error, words):
    with scheduler(Paged()) as serves:
        with pytest.raises(error, match=words):
            serves.submit(request(ids, **options))
        assert serves.stats().queued == 0


def test_an_engine_for_one_text_is_refused():
    with pytest.raises(UserError, match="reads one text only"):
        Scheduler(Hashing(), Bytes())
    assert END in Bytes.eos_ids
    assert not ResponseStream(request([1])).ended


@needs_core
@pytest.mark.parametrize("name", ["runtime", "pytorch"])
def test_a_prompt_of_several_requests_is_read_once(name: str):
    reads, prompts = engine(name), [tiny.IDS[:130], [5, 6], tiny.IDS[1:129]]
    requests = [
        request(ids, max_tokens=5, temperature=1, seed=n, logprobs=2) for n in range(4) for ids in prompts
    ]
    alone = [shown(finish(generate(reads, Words(), each.ids, each.settings))) for each in requests]
    made = answer_all(reads, Words(), requests, max_sequences=12)
    assert [shown(each) for each in made] == alone and len(set(alone)) > 6
    assert sum(each.timings.prefill_tokens for each in made) == 130 + 2 + 128


@needs_core
def test_few_texts_of_one_prompt_begin_in_a_step_beside_another_client(monkeypatch: pytest.MonkeyPatch):
    """Each copies a page and samples: sixteen at once held up the other's answer for 50 ms."""
    begun, forks = list[int](), Scheduler._forks

    def counted(self: Scheduler, *arguments: Any) -> Any:
        found = forks(self, *arguments)
        begun.append(len(found))
        return found

    monkeypatch.setattr(Scheduler, "_forks", counted)
    reads = engine("runtime")
    texts = [request(tiny.IDS[:30], max_tokens=2, temperature=1, seed=n, client="b") for n in range(12)]
    alone = [finish(generate(reads, Words(), each.ids, each.settings)).ids for each in texts]
    for others, most in ((0, 11), (1, 4)):
        begun.clear()
        before = [request([n], max_tokens=40, client="a") for n in range(others)]
        made = answer_all(reads, Words(), before + texts, max_sequences=16)
        assert [one.ids for one in made[others:]] == alone
        assert max(begun) == most


def test_logprobs_are_of_what_was_drawn_from_where_asked_for():
    settings = SamplingParams(max_tokens=3, temperature=0.5, top_k=4, seed=1, stop_ids=[7])
    requests = [Request((1, 2), settings, drawn_logprobs=drawn) for drawn in (False, True)]
    plain, drawn = answer_all(Paged(), Bytes(), requests)
    assert plain.ids == drawn.ids
    for at in range(3):
        logits = Paged().after([1, 2, *plain.ids[:at]])
        best = np.sort(logits)[-4:].astype(np.float64) / 0.5
        logit = float(logits[plain.ids[at]])
        assert plain.logprobs[at] == pytest.approx(logit - np.logaddexp.reduce(logits), rel=1e-4)
        assert drawn.logprobs[at] == pytest.approx(logit / 0.5 - np.logaddexp.reduce(best), rel=1e-4)
    ends = answer_all(Paged(), Bytes(), [Request((1, 2), replace(settings, stop_ids=plain.ids[1:2]))])[0]
    assert ends.ids == plain.ids[:1] and ends.stop_logprob == plain.logprobs[1]
    assert plain.stop_logprob is None


@pytest.mark.parametrize(("tokens", "most"), [(60, 8), (63, 7)])  # an eighth of the pages is left
def test_another_client_starts_beside_one_that_has_all_places(tokens: int, most: int):
    reads = Paged(gated=True)
    with scheduler(reads, max_sequences=8, max_queue=8) as serves:
        submit = serves.submit
        for n in range(most):
            submit(request([n], max_tokens=tokens, client="a"))
        assert reads.entered.acquire(timeout=60)
        while serves.stats().running < most:
            reads.pass_step()
        for n in range(12 - most):
            submit(request([n], max_tokens=1, client="a"))
        with pytest.raises(QueueFullError, match=f"{12 - most} of your requests wait"):
            submit(request([5], max_tokens=1, client="a"))
        other = submit(request([9], max_tokens=1, client="b"))
        for _ in range(4):
            reads.pass_step()
        assert other.ended and serves.stats().running == most and serves.stats().queued > 0
        reads.gate.release(10_000)


def test_a_short_prompt_is_read_before_many_of_another_client(monkeypatch: pytest.MonkeyPatch):
    reads = Paged(gated=True)
    with scheduler(reads, max_sequences=8, max_queue=99) as serves:
        monkeypatch.setattr(serves._budget, "allowed", lambda decoding, *_: 2 if decoding else 256)
        serves.submit(request([1], max_tokens=60, client="a"))
        assert reads.entered.acquire(timeout=60)
        for n in range(6):
            serves.submit(request([n, 2, 3] * 13, max_tokens=9, client="a"))
        for _ in range(8):
            reads.pass_step()
        other = serves.submit(request([9, 8, 7, 6, 5], max_tokens=1, client="b"))
        for _ in range(6):  # one id of two at least, and five to read
            reads.pass_step()
        assert other.ended and serves.stats().running == 7
        reads.gate.release(10_000)


def test_a_clients_first_prompt_is_read_as_fast_as_the_largest_client_decodes(
    monkeypatch: pytest.MonkeyPatch,
):
    reads = Paged(gated=True)
    with scheduler(reads, max_sequences=8, max_queue=99) as serves:
        monkeypatch.setattr(serves._budget, "allowed", lambda decoding, *_: 2 if decoding else 256)
        for n in range(5):
            serves.submit(request([n], max_tokens=60, client="a"))
        assert reads.entered.acquire(timeout=60)
        for _ in range(8):
            reads.pass_step()
        other = serves.submit(request([9, 8, 7, 6, 5], max_tokens=1, client="b"))
        own = serves.submit(request([6, 7, 8, 9, 5], max_tokens=1, client="a"))
        for _ in range(2):
            reads.pass_step()
        assert other.ended and not own.ended
        for _ in range(3):
            reads.pass_step()
        assert own.ended
        reads.gate.release(10_000)


def test_clients_have_equal_parts_of_what_is_read_and_a_higher_priority_all(monkeypatch: pytest.MonkeyPatch):
    reads = Paged(gated=True)
    with scheduler(reads, max_sequences=8, max_queue=99) as serves:
        monkeypatch.setattr(serves._budget, "allowed", lambda *_: 6)
        serves.submit(request([1], max_tokens=60, client="c"))
        assert reads.entered.acquire(timeout=60)
        for client, first in (("a", 10), ("a", 20), ("a", 30), ("b", 40)):
            serves.submit(request([first] * 30, max_tokens=1, client=client))
        serves.submit(request([50] * 9, max_tokens=1, client="d", priority=1))
        for _ in range(4):
            reads.pass_step()
        reads.gate.release(10_000)
        serves.drain(10)
    first, second, third = (Counter(id for text in call[1:] for id in text) for call in reads.calls[1:4])
    assert first == {50: 6} and second[50] == 3 and sum(second.values()) == 6
    assert third[40] == 3 and third[10] == third[20] == third[30] == 1


@pytest.mark.parametrize("lately", [True, False])
def test_the_prompt_of_a_client_that_is_not_alone_is_read_in_short_steps(
    lately: bool, monkeypatch: pytest.MonkeyPatch
):
    """Another client that had an answer lately finds a short step under way, and is read in a short one."""
    now = [0.0]
    monkeypatch.setattr(scheduling, "time", SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: 0))
    reads = Paged(max_context=400, gated=True)
    with scheduler(reads, prefill_chunk=64) as serves:

        def asked(ids: list[int], client: str, steps: int) -> None:
            stream = serves.submit(request(ids, max_tokens=1, client=client))
            for _ in range(steps):
                assert reads.entered.acquire(timeout=60)
                reads.gate.release()
            finish(stream)

        asked([7] * 100, "a", 2)  # alone: whole chunks
        asked([3], "b", 1)
        now[0] += scheduling.LATELY / 2 if lately else scheduling.LATELY + 1
        long = serves.submit(request([9] * 100, max_tokens=1, client="a"))
        assert reads.entered.acquire(timeout=60)
        other = serves.submit(request([4] * 3, max_tokens=1, client="b"))
        reads.gate.release(1000)
        finish(other)
        finish(long)
    read = [sum(map(len, call)) for call in reads.calls]
    assert read[:4] == [64, 36, 1, SHORT if lately else 64]
    assert read[4] == SHORT and sum(id == 4 for text in reads.calls[4] for id in text) == 3


def test_a_higher_priority_starts_first():
    ended: list[int] = []
    reads = Paged(gated=True)
    with scheduler(reads, max_sequences=1) as serves:
        for n, priority in enumerate((0, 0, 0, 1, 2)):
            stream = serves.submit(request([n], max_tokens=1, client=str(n), priority=priority))
            stream.subscribe(lambda event, n=n: ended.append(n) if event.generation else None)
            if n == 0:
                assert reads.entered.acquire(timeout=60)
        reads.gate.release(1000)
        serves.drain(10)
    assert ended == [0, 4, 3, 1, 2]
