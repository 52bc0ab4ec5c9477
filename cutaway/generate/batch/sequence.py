"""One sequence under way: the tokens it chose, their text, what ends it, and the pages that it has read."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cutaway.errors import UserError
from cutaway.generate.batch.observation import LOGITS, LOOKS, Observation
from cutaway.generate.batch.prefix_cache import Absent, PrefixCache, page_key
from cutaway.generate.batch.request import (
    Constraint,
    ContextFullError,
    FinishReason,
    Generation,
    Piece,
    ResponseStream,
    Timings,
)
from cutaway.generate.engine import BatchedEngine, Engine, Observable
from cutaway.generate.internals import Internals, LayerInternals, summarize
from cutaway.generate.sample import History, Sampler, logprobs, mask_padding
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.speculative import DraftedText
from cutaway.generate.stop_scan import StopScan


@runtime_checkable
class TextStream(Protocol):
    """Incremental detokenizer: ids to text, never half a character."""

    def push(self, id: int, /) -> str: ...

    def follow(self, ids: Iterable[int], /) -> None:
        """Push ids whose own text is not needed."""
        ...

    def finish(self) -> str: ...


@runtime_checkable
class TokenizerProtocol(Protocol):
    """What generation needs of a tokenizer."""

    @property
    def bos(self) -> int | None: ...

    @property
    def eos_ids(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def stream(self) -> TextStream: ...


def vocab_size(engine: Engine, tokenizer: TokenizerProtocol) -> int:
    """How many ids are tokens. A model's table may be padded past its tokenizer's last id."""
    return min(engine.vocab, len(tokenizer))


def check_ids(ids: Sequence[int], vocab: int) -> None:
    """UserError for an id that is outside a model's vocabulary."""
    for at, id in enumerate(ids):
        if not 0 <= id < vocab:
            raise UserError(f"The prompt's id {id} at position {at} is outside the model's 0 to {vocab - 1}")


def check_prompt(prompt_ids: Sequence[int], tokenizer: TokenizerProtocol, engine: Engine) -> tuple[int, ...]:
    """The prompt's ids, BOS where there are none; UserError for what the engine cannot continue."""
    if max(1, len(prompt_ids)) >= engine.max_context:  # first: to look at a whole body's ids takes long
        raise ContextFullError(max(1, len(prompt_ids)), engine.max_context)
    ids = tuple(int(id) for id in prompt_ids)
    if not ids and tokenizer.bos is None:
        raise UserError(
            "The prompt is empty and the tokenizer has no begin token to start from: give at least one token"
        )
    ids = ids or (int(tokenizer.bos or 0),)
    check_ids(ids, engine.vocab)
    return ids


class SequenceOutput:
    """What a sequence has generated so far, and what ends it. It holds no KV cache and calls no engine."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: TokenizerProtocol,
        prompt_ids: tuple[int, ...],
        settings: SamplingParams,
        constraint: Constraint | None = None,
        drawn_logprobs: bool = False,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.constraint = constraint
        self.drawn_logprobs = drawn_logprobs
        self.max_context = engine.max_context
        self.top_logprobs = settings.logprobs
        self.sampler = Sampler(settings)
        self.history = History(prompt_ids)
        self.vocab, self._tokenizer = len(tokenizer), tokenizer
        self.stop_scan = StopScan(tuple(settings.stop))
        self.stop_ids = {*settings.stop_ids, *(() if settings.ignore_eos else tokenizer.eos_ids)}
        room = engine.max_context - len(prompt_ids)
        wanted = room + 1 if settings.max_tokens is None else settings.max_tokens
        self.max_tokens = min(wanted, room)
        self.reason_at_limit: FinishReason = "length" if wanted <= room else "context"
        self.pieces: list[Piece] = []
        self.finish_reason: FinishReason | None = None
        self.stop: str | int | None = None
        self.stop_logprob: float | None = None

    @cached_property
    def detokenizer(self) -> TextStream:
        """Decodes what follows the prompt; made when the first token is chosen.

        A token's first lookup is slower than later ones. Before the request is queued it would decide which
        step the request joins, and so tell the client whether another's prompt had the token.
        """
        stream = self._tokenizer.stream()
        stream.follow([id for id in self.prompt_ids if id < self.vocab])
        return stream

    def append_all(self, logits: np.ndarray, draft: Sequence[int]) -> tuple[list[Piece], int]:
        """Choose tokens from the logits [n v] while they are the draft's, and one more: the new pieces, and
        how many tokens of the draft were accepted.
        """
        pieces, accepted = list[Piece](), 0
        for n, row in enumerate(logits):
            piece = self.append(row)
            pieces += [] if piece is None else [piece]
            if piece is None or n == len(draft) or piece.id != draft[n]:
                break
            accepted += 1
            if self.finish_reason is not None:
                break
        return pieces, accepted

    @property
    def room(self) -> int:
        """How many tokens may be drafted: one more is chosen after them."""
        return self.max_tokens - len(self.pieces) - 1

    def append(self, logits: np.ndarray, inside: tuple[LayerInternals, ...] = ()) -> Piece | None:
        """Choose the next token from the logits [v]; its piece, None where it is an end token."""
        logits = mask_padding(logits, self.vocab)
        allowed = logits
        if self.constraint is not None:
            allowed = logits.copy()
            self.constraint.mask(allowed)
        processed = self.sampler.process(allowed, self.history)
        id = self.sampler.choose(processed)
        logits = processed if self.drawn_logprobs else logits
        if id in self.stop_ids:
            self.finish_reason, self.stop, self.stop_logprob = "stop", id, logprobs(logits, id)[0]
            return None
        self.history.append(id)
        text = self.stop_scan.push(self.detokenizer.push(id))
        piece = Piece(text, id, *logprobs(logits, id, self.top_logprobs), inside=inside)
        self.pieces.append(piece)
        if self.constraint is not None:
            self.constraint.accept(id)
        if self.stop_scan.found is not None:
            self.finish_reason, self.stop = "stop", self.stop_scan.found
        elif self.constraint is not None and self.constraint.done:
            self.finish_reason = "stop"
        elif len(self.pieces) == self.max_tokens:
            self.finish_reason = self.reason_at_limit
        return piece

    def last_piece(self, timings: Timings) -> Piece:
        """The text that was held back, and the generation."""
        text = ""
        if self.stop_scan.found is None:
            text = self.stop_scan.push(self.detokenizer.finish())
        if self.stop_scan.found is not None:
            self.finish_reason, self.stop = "stop", self.stop_scan.found
        text += self.stop_scan.finish()
        assert self.finish_reason is not None
        generation = Generation(
            text="".join(piece.text for piece in self.pieces) + text,
            ids=tuple(piece.id for piece in self.pieces if piece.id is not None),
            prompt_ids=self.prompt_ids,
            logprobs=tuple(piece.logprob for piece in self.pieces if piece.logprob is not None),
            top_logprobs=tuple(piece.top_logprobs for piece in self.pieces),
            finish_reason=self.finish_reason,
            stop=self.stop,
            max_context=self.max_context,
            timings=timings,
            stop_logprob=self.stop_logprob,
        )
        return Piece(text, generation=generation)


class ScheduledSequence:
    """A request's sequence in the scheduler: created when the request is queued, started when it may run."""

    def __init__(self, stream: ResponseStream, output: SequenceOutput, engine: BatchedEngine) -> None:
        self.stream, self.output = stream, output
        self.request = stream.request
        self.engine: Any = engine
        self.prompt = output.prompt_ids
        self.state: Any = None
        # Pages that hold the prompt and the longest answer, of which the last id is not read.
        self.pages_needed = -(-(len(self.prompt) + output.max_tokens - 1) // engine.page)
        self._scope = self.request.cache_scope + engine.scope
        watched = ("edit", "prompt_logprobs", "internals", "observation")
        is_plain = all(getattr(self.request, name) is None for name in watched)
        # What names a prompt that is read once for all that have it; None where its reading is watched.
        self.whole_prompt = (self._scope, self.prompt) if is_plain else None
        self.cached_tokens = 0  # prompt ids whose pages came from the prefix cache
        self.restored_tokens = 0  # of those, from pages on disk
        self.restored: dict[bytes, Any] = {}  # pages that were loaded for it, by their keys
        self.searched = self.stored = False  # whether pages on disk were looked for, and its own given to it
        self.drafted = DraftedText(output.history, output.sampler, self.request.client)
        self.last_prefill_step = self.last_decode_step = 0
        self._keys: list[bytes] = []
        self._pages: list[Any] = []
        self._queued = time.perf_counter()
        self._started = self._first_token = 0.0

    @property
    def decoding(self) -> bool:
        """Whether the whole prompt is read."""
        return self.state.length >= len(self.prompt)

    def start(self) -> None:
        """Give it an empty state."""
        self._started = time.perf_counter()
        edit = self.request.edit
        self.state = self.engine.resume([]) if edit is None else self.engine.edited_state(edit)

    @cached_property
    def _edited_from(self) -> float:
        """The position up to which its pages are those of any text with its ids."""
        edit, engine = self.request.edit, self.engine
        return math.inf if edit is None else engine.edits_begin(edit)

    # ---- prefill -------------------------------------------------------------------------------------------

    @property
    def next_page(self) -> bytes | None:
        """The key of the page that is read next; None where it is not shared."""
        end = (len(self._keys) + 1) * self.engine.page
        own = end > self._edited_from or self.request.prompt_logprobs is not None
        shown = self.request.observation is not None and end > self.request.observation.first
        return None if own or shown or end >= len(self.prompt) else self._next_key(self.prompt)

    def _next_key(self, ids: Sequence[int] | np.ndarray) -> bytes:
        start = len(self._keys) * self.engine.page
        previous = self._keys[-1] if self._keys else self._scope
        return page_key(previous, ids[start : start + self.engine.page])

    def reuse_pages(self, cache: PrefixCache) -> None:
        """At a page's start: take the next pages from the prefix cache, as far as it has them."""
        before = len(self._pages)
        if self.state.length != before * self.engine.page:
            return
        while (key := self.next_page) is not None:
            if (page := cache.get(key)) is None:
                if (page := self.restored.pop(key, None)) is None:
                    break
                cache.add([*self._keys, key], page)
                self.restored_tokens += self.engine.page
            self._keys.append(key)
            self._pages.append(page)
        if len(self._pages) > before:
            cache.touch(self._keys)
            edit, engine = self.request.edit, self.engine
            self.state = (
                engine.resume(self._pages) if edit is None else engine.edited_state(edit, self._pages)
            )
            self.cached_tokens += (len(self._pages) - before) * self.engine.page

    def pages_to_load(self) -> Absent:
        """Of the pages that other texts may have left, those that it has not."""
        size, first, keys = self.engine.page, len(self._keys), list(self._keys)
        while self.next_page is not None:
            self._keys.append(self._next_key(self.prompt))
        found, self._keys = self._keys[first:], keys
        ids = [self.prompt[n * size : (n + 1) * size] for n in range(first, first + len(found))]
        return Absent(found, ids, self._pages[-1] if self._pages else None)

    def prompt_pages(self) -> tuple[list[bytes], list[Any]]:
        """The keys and pages of its prompt, of those that any text with these ids may have."""
        count = min(len(self._pages), len(self.prompt) // self.engine.page)
        return self._keys[:count], self._pages[:count]

    def cache_pages(self, cache: PrefixCache) -> None:
        """Add the pages that are full by now; where the engine fixes the cuts (grid), those of the prompt."""
        whole = self.engine.grid == 1
        # a draft may have been read, which is no part of the text yet
        read = min(self.state.length, len(self.output.history.ids))
        full = read if whole else min(read, len(self.prompt))
        full = min(full, self._edited_from) // self.engine.page
        for page in range(len(self._pages), full):
            self._keys.append(self._next_key(self.output.history.ids))
            self._pages.append(self.engine.keep(self.state, page))
            cache.add(self._keys, self._pages[-1])

    def fork(self, read: ScheduledSequence) -> None:
        """Continue from a copy of the state of another sequence, which has read the same prompt."""
        self.state = self.engine.fork(read.state)
        self._keys, self._pages = list(read._keys), list(read._pages)
        self.cached_tokens, self.stored = len(self.prompt), True

    def next_prompt_ids(self, most: int) -> Sequence[int]:
        """The next ids of the prompt: at most so many, or up to the engine's next cut where it fixes them."""
        start, grid, observation = self.state.length, self.engine.grid, self.request.observation
        most = most if observation is None else min(most, observation.chunk)
        return self.prompt[start : start + most if grid == 1 else start - start % grid + grid]

    # ---- output --------------------------------------------------------------------------------------------

    def add_prompt_logprobs(self, start: int, logits: np.ndarray) -> None:
        """Log-probabilities of the prompt's ids from position start + 1 on, each by the row before it."""
        count, scored = self.request.prompt_logprobs or 0, self.stream.prompt_logprobs
        if start == 0:
            scored.append(None)
        for row, id in zip(logits, self.prompt[start + 1 :], strict=False):
            scored.append(logprobs(mask_padding(row, self.output.vocab), id, count))

    def draft_room(self) -> int:
        """How many tokens may be drafted; 0 where what is inside the model is shown at each token."""
        # by name: asking whether an engine is `Rewinding` takes as long as choosing a token
        rewindable = getattr(self.engine, "rewindable", None)
        if rewindable is None or self.request.internals is not None:
            return 0
        return min(self.output.room, rewindable(self.state) - 1)

    def unread(self, drafted: bool) -> list[int]:
        """The chosen ids that the state does not hold: the last, and where a recurrence came back to before a
        draft those since then. With a draft after them it is marked.
        """
        if drafted:
            self.engine.mark(self.state)
        return self.output.history.ids[self.state.length :].tolist()

    def append(self, chunk: Chunk) -> list[Piece]:
        """Choose from the chunk's logits: the new pieces; at the end the last has the generation."""
        assert chunk.logits is not None
        self._first_token = self._first_token or time.perf_counter()
        if chunk.draft:
            pieces, accepted = self.output.append_all(chunk.logits, chunk.draft)
            if accepted < len(chunk.draft):
                self.state.truncate(self.state.length - len(chunk.draft) + accepted)
            chunk.accepted = accepted
            self.drafted.drafted += len(chunk.draft)
            self.drafted.accepted += accepted
        else:
            piece = self.output.append(chunk.logits[-1], chunk.inside)
            pieces = [] if piece is None else [piece]
        return pieces if self.output.finish_reason is None else [*pieces, self._last_piece()]

    def _last_piece(self) -> Piece:
        ended = self.output.stop_logprob is not None  # by an id that is no piece
        steps = len(self.output.pieces) - 1 + ended
        timings = Timings(
            prefill_tokens=len(self.prompt) - self.cached_tokens,
            prefill_seconds=self._first_token - self._started,
            decode_tokens=steps,
            decode_seconds=time.perf_counter() - self._first_token if steps else 0.0,
            first_token_seconds=self._first_token - self._queued,
            queue_seconds=self._started - self._queued,
            drafted_tokens=self.drafted.drafted,
            accepted_tokens=self.drafted.accepted,
        )
        return self.output.last_piece(timings)


@dataclass
class Chunk:
    """Some ids of one sequence, read in one step.

    After the step: ``logits`` float32 [n v] at ``logits_at``, and for the layers of ``internals`` the lens's
    logits float32 [v] and the attention weights float32 [h s]. What the request observes is kept, of the ids
    at ``observed_at``.
    """

    sequence: ScheduledSequence
    ids: Sequence[int]
    logits: np.ndarray | None = None
    lens: Sequence[np.ndarray] = ()
    patterns: Sequence[np.ndarray] = ()
    draft: Sequence[int] = ()  # the last of the ids, which may not be chosen
    accepted: int = 0  # of them
    shown: Mapping[str, np.ndarray] = field(default_factory=dict)  # what drafting watches, of its ids

    def __post_init__(self) -> None:
        sequence, count = self.sequence, len(self.ids)
        samples = sequence.state.length + count >= len(sequence.prompt)  # a token is chosen after this chunk
        scored = sequence.request.prompt_logprobs is not None and not sequence.decoding
        observation = None if sequence.decoding else sequence.request.observation
        self.observed_at = [] if observation is None else observation.within(sequence.state.length, count)
        self.observation = observation if self.observed_at or samples else None
        self.logits_at: Sequence[int] = range(0 if scored else count - samples - len(self.draft), count)
        if observation is not None and LOGITS in observation.names:
            self.logits_at = sorted({*self.observed_at, *self.logits_at})
        self.internals: Internals | None = sequence.request.internals if samples else None

    @property
    def begins_page(self) -> bool:
        """Whether one of its ids, all of them read by now, is the first of a page."""
        end, page = self.sequence.state.length, self.sequence.engine.page
        return (end - 1) // page > (end - len(self.ids) - 1) // page

    @property
    def inside(self) -> tuple[LayerInternals, ...]:
        """Internals at the last id, summarized."""
        if self.internals is None:
            return ()
        return tuple(
            summarize(
                layer,
                self.patterns[n] if self.patterns else None,
                mask_padding(self.lens[n], self.sequence.output.vocab) if self.lens else None,
                self.internals.lens,
            )
            for n, layer in enumerate(self.internals.layers)
        )


def forward(engine: BatchedEngine, chunks: Sequence[Chunk], watches: Sequence[str] = ()) -> None:
    """Read all chunks in one call of the engine; what is inside it only where a request asks for that, or
    drafting ``watches`` it.
    """
    logits_at: list[int] = []
    after: list[int] = []
    attention_at: list[tuple[int, ...]] = []
    names = dict.fromkeys(watches)
    counts, start = [], 0
    for chunk in chunks:
        own, last = [start + at for at in chunk.logits_at], start + len(chunk.ids) - 1
        layers = list(chunk.internals.layers) if chunk.internals is not None else []
        lens = layers if chunk.internals is not None and chunk.internals.lens else []
        if lens and chunk.internals is not None and chunk.internals.through is not None:
            names |= dict.fromkeys(map(residual, lens))
            lens = []
        attended = layers if chunk.internals is not None and chunk.internals.attention else []
        counts.append((start, len(own), len(lens), len(attended)))
        logits_at += own + [last] * len(lens)
        after += [engine.layers - 1] * len(own) + lens
        attention_at += [(last, layer) for layer in attended]
        if chunk.observation is not None and chunk.observed_at:
            names |= dict.fromkeys(chunk.observation.values)
            attention_at += [
                (start + at, *look) for look in chunk.observation.looks for at in chunk.observed_at
            ]
        start += len(chunk.ids)
    texts, states = [chunk.ids for chunk in chunks], [chunk.sequence.state for chunk in chunks]
    values: Mapping[str, np.ndarray] = {}
    if names:
        assert isinstance(engine, Observable)  # or the request was refused
        logits, patterns, values = engine.watch_values(
            texts, states, logits_at, after, attention_at, list(names)
        )
    elif attention_at or any(lens for _, _, lens, _ in counts):
        logits, patterns = engine.watch(texts, states, logits_at, after, attention_at)
    else:
        logits, patterns = engine.read(texts, states, logits_at), []
    at, remaining = 0, iter(patterns)
    for chunk, (start, own, lens, attended) in zip(chunks, counts, strict=True):
        chunk.logits, chunk.lens = logits[at : at + own], list(logits[at + own : at + own + lens])
        chunk.patterns = list(islice(remaining, attended))
        asked = chunk.internals
        if asked is not None and asked.through is not None and asked.lens:
            rows = np.stack([values[residual(one)][start + len(chunk.ids) - 1] for one in asked.layers])
            chunk.lens = asked.through(asked.layers, rows)
        at += own + lens
        if watches:
            chunk.shown = {name: values[name][start : start + len(chunk.ids)] for name in watches}
        if chunk.observation is not None:
            _observe(chunk, chunk.observation, start, remaining, values)


def residual(layer: int) -> str:
    """The name of the residual stream after a layer."""
    return f"blocks.{layer}.out"


def _observe(
    chunk: Chunk,
    observation: Observation,
    start: int,
    patterns: Iterator[np.ndarray],
    values: Mapping[str, np.ndarray],
) -> None:
    """Keep what a request observes of its chunk, whose first id is number ``start`` of the step's."""
    assert chunk.logits is not None
    for name in observation.names:
        if name.endswith(LOOKS):
            for row in islice(patterns, len(chunk.observed_at)):
                observation.add(name, row)
        elif name == LOGITS:
            for at in chunk.observed_at:
                observation.add(name, chunk.logits[bisect_left(chunk.logits_at, at)])
        else:
            for at in chunk.observed_at:
                observation.add(name, values[name][start + at])
    if len(chunk.logits):
        observation.logits = chunk.logits[-1].copy()
