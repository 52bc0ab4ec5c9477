"""One sequence under way: the tokens it chose, their text, what ends it, and the pages that it has read."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cutaway.errors import UserError
from cutaway.generate.batch.prefix_cache import Absent, PrefixCache, page_key, page_keys
from cutaway.generate.batch.request import (
    Constraint,
    ContextFullError,
    FinishReason,
    Generation,
    Piece,
    ResponseStream,
    Timings,
)
from cutaway.generate.engine import BatchedEngine, Engine
from cutaway.generate.internals import LayerInternals
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
        self._stop_scan = StopScan(tuple(settings.stop)) if settings.stop else None
        self.stop_ids = {*settings.stop_ids, *(() if settings.ignore_eos else tokenizer.eos_ids)}
        room = engine.max_context - len(prompt_ids)
        wanted = room + 1 if settings.max_tokens is None else settings.max_tokens
        self.max_tokens = min(wanted, room)
        self.reason_at_limit: FinishReason = "length" if wanted <= room else "context"
        self.pieces: list[Piece] = []
        self.finish_reason: FinishReason | None = None
        self.stop: str | int | None = None
        self.stop_logprob: float | None = None
        self.drafted = self.accepted = 0  # tokens that were proposed, and of them those that were chosen

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
        self.drafted, self.accepted = self.drafted + len(draft), self.accepted + accepted
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
        text, scan = self.detokenizer.push(id), self._stop_scan
        text = text if scan is None else scan.push(text)
        piece = Piece(text, id, *logprobs(logits, id, self.top_logprobs), inside=inside)
        self.pieces.append(piece)
        if self.constraint is not None:
            self.constraint.accept(id)
        if scan is not None and scan.found is not None:
            self.finish_reason, self.stop = "stop", scan.found
        elif self.constraint is not None and self.constraint.done:
            self.finish_reason = "stop"
        elif len(self.pieces) == self.max_tokens:
            self.finish_reason = self.reason_at_limit
        return piece

    def last_piece(self, timings: Timings) -> Piece:
        """The text that was held back, and the generation."""
        text, scan = self.detokenizer.finish(), self._stop_scan
        if scan is not None:
            text = scan.finish(text)
            if scan.found is not None:
                self.finish_reason, self.stop = "stop", scan.found
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
        # The key of a prompt that is read once for all sequences with it; None where its prefill is observed.
        self.whole_prompt = (self._scope, self.prompt) if is_plain else None
        self.cached_tokens = 0  # prompt ids whose pages came from the prefix cache
        self.restored_tokens = 0  # of those, from pages on disk
        self.restored: dict[bytes, Any] = {}  # pages that were loaded for it, by their keys
        self.searched = self.stored = False  # whether pages on disk were looked for, and its own given to it
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

    @cached_property
    def shared_pages(self) -> int:
        """How many pages of its prompt may be those of other texts."""
        request, first = self.request, math.inf
        if request.prompt_logprobs is not None:
            return 0
        if request.observation is not None:
            first = request.observation.first
        return int(min(self._edited_from, first, len(self.prompt) - 1) // self.engine.page)

    @property
    def next_page(self) -> bytes | None:
        """The key of the page that is read next; None where it is not shared."""
        return self._next_key(self.prompt) if len(self._keys) < self.shared_pages else None

    def _next_key(self, ids: Sequence[int] | np.ndarray) -> bytes:
        start = len(self._keys) * self.engine.page
        previous = self._keys[-1] if self._keys else self._scope
        return page_key(previous, ids[start : start + self.engine.page])

    def reuse_pages(self, cache: PrefixCache) -> None:
        """Take the next pages from the prefix cache, as far as it has them. Called at a page's start."""
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
        """The pages of its prompt that other texts may have stored and it does not have."""
        size, first, last = self.engine.page, len(self._keys), self.shared_pages
        keys = page_keys(self.engine, self.request.cache_scope, self.prompt)[first:last]
        ids = [self.prompt[n * size : (n + 1) * size] for n in range(first, last)]
        return Absent(keys, ids, self._pages[-1] if self._pages else None)

    def prompt_pages(self) -> tuple[list[bytes], list[Any]]:
        """The keys and pages of its prompt, of those that any text with these ids may have."""
        count = min(len(self._pages), len(self.prompt) // self.engine.page)
        return self._keys[:count], self._pages[:count]

    def cache_pages(self, cache: PrefixCache) -> None:
        """Add the pages that are full by now; where the engine fixes the cuts (grid), those of the prompt."""
        whole = self.engine.grid == 1
        # a draft may have been read, which is no part of the text yet
        read = min(self.state.length, len(self.prompt) + len(self.output.pieces))
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

    @cached_property
    def drafted(self) -> DraftedText:
        """The text as drafting sees it."""
        return DraftedText(self.output.history, self.output.sampler, self.request.client)

    def draft_room(self) -> int:
        """How many tokens may be drafted; 0 where what is inside the model is shown at each token."""
        # by name: isinstance of the protocol `Rewinding` takes as long as choosing a token
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

    def append(
        self, logits: np.ndarray, draft: Sequence[int], inside: tuple[LayerInternals, ...]
    ) -> tuple[list[Piece], int]:
        """Choose from a chunk's logits: the new pieces, at the end with the generation, and how many ids of
        the draft were chosen.
        """
        accepted = 0
        self._first_token = self._first_token or time.perf_counter()
        if draft:
            pieces, accepted = self.output.append_all(logits, draft)
            if accepted < len(draft):
                self.state.truncate(self.state.length - len(draft) + accepted)
        else:
            piece = self.output.append(logits[-1], inside)
            pieces = [] if piece is None else [piece]
        if self.output.finish_reason is not None:
            pieces = [*pieces, self._last_piece()]
        return pieces, accepted

    def _last_piece(self) -> Piece:
        ended = self.output.stop_logprob is not None  # by an end id
        steps = len(self.output.pieces) - 1 + ended
        timings = Timings(
            prefill_tokens=len(self.prompt) - self.cached_tokens,
            prefill_seconds=self._first_token - self._started,
            decode_tokens=steps,
            decode_seconds=time.perf_counter() - self._first_token if steps else 0.0,
            first_token_seconds=self._first_token - self._queued,
            queue_seconds=self._started - self._queued,
            drafted_tokens=self.output.drafted,
            accepted_tokens=self.output.accepted,
        )
        return self.output.last_piece(timings)
