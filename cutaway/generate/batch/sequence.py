"""One request under way: what was read and chosen, the pages it read, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from cutaway.generate.batch.prefix_cache import ROOT, PrefixCache, key
from cutaway.generate.batch.request import ResponseStream
from cutaway.generate.decode import Piece, Run, Timings, mask_padding
from cutaway.generate.engine import BatchedEngine
from cutaway.generate.internals import LayerInternals
from cutaway.generate.sample import logprobs


class Answer:
    """Made when its request is taken; ``begin`` when its turn has come."""

    def __init__(self, stream: ResponseStream, run: Run, engine: BatchedEngine) -> None:
        self.stream, self.run = stream, run
        self.engine: Any = engine
        self.edit = stream.request.edit
        self.prompt = run.prompt_ids
        self.state: Any = None
        self.shared = 0  # ids of the prompt that others had read
        self.served = 0  # the last step that read some of its prompt
        self._keys: list[bytes] = []
        self._pages: list[Any] = []
        self._asked = time.perf_counter()
        self._began = self._first = 0.0

    @property
    def pages_needed(self) -> int:
        """Pages that hold the prompt and the longest answer, of which the last id is not read."""
        return -(-(len(self.prompt) + self.run.limit - 1) // self.engine.page)

    @property
    def decoding(self) -> bool:
        """Whether its prompt is read."""
        return self.state.length >= len(self.prompt)

    def begin(self) -> None:
        self._began = time.perf_counter()
        if self.edit is None:
            self.state = self.engine.resume([])
        else:
            self.state = self.engine.edited_state(self.edit)

    # ---- the prompt ----------------------------------------------------------------------------------------

    @property
    def next_page(self) -> bytes | None:
        """The key of the page that is being read, None where it is not to be shared: one that the prompt does
        not fill, or whose ids' own log-probabilities are wanted.
        """
        if self.edit is not None:  # its activations are its own
            return None
        page = len(self._keys)
        end = (page + 1) * self.engine.page
        if self.stream.request.prompt_logprobs is not None or end >= len(self.prompt):
            return None
        return key(self._keys[-1] if page else ROOT, self.prompt[end - self.engine.page : end])

    def share(self, prefixes: PrefixCache) -> None:
        """Takes over the pages that another text with this beginning has read, if it stands before one."""
        before = len(self._pages)
        if self.state.length != before * self.engine.page:
            return
        while (next := self.next_page) is not None and (page := prefixes.get(next)) is not None:
            self._keys.append(next)
            self._pages.append(page)
        if len(self._pages) == before:
            return
        prefixes.touch(self._keys)
        self.state = self.engine.resume(self._pages)
        self.shared += (len(self._pages) - before) * self.engine.page

    def keep(self, prefixes: PrefixCache) -> None:
        """Lets others have the pages that it has filled. Where reading must be cut in one way, those of
        prompts.
        """
        if self.edit is not None:
            return
        size, grid = self.engine.page, self.engine.grid
        full = (self.state.length if grid == 1 else min(self.state.length, len(self.prompt))) // size
        for page in range(len(self._pages), full):
            ids = self.run.history.ids[page * size : (page + 1) * size].tolist()
            self._keys.append(key(self._keys[-1] if page else ROOT, ids))
            self._pages.append(self.engine.keep(self.state, page))
            prefixes.add(self._keys, self._pages[-1])

    def stretch(self, most: int) -> Sequence[int]:
        """The next ids of the prompt: so many, or as far as the engine's next cut if it has its own."""
        start, grid = self.state.length, self.engine.grid
        return self.prompt[start : start + most if grid == 1 else start - start % grid + grid]

    # ---- the answer ----------------------------------------------------------------------------------------

    def score(self, start: int, logits: np.ndarray) -> None:
        """The log-probabilities of the prompt's ids from position start + 1 on, each by the row before it."""
        asked, told = self.stream.request.prompt_logprobs or 0, self.stream.prompt_logprobs
        if start == 0:
            told.append(None)
        for row, id in zip(logits, self.prompt[start + 1 :], strict=False):
            told.append(logprobs(mask_padding(row, self.run.words), id, asked))

    def take(self, logits: np.ndarray, inside: tuple[LayerInternals, ...]) -> list[Piece]:
        """Chooses from the logits [v]: the pieces to show, the last with the generation if it is at its
        end.
        """
        if not self._first:
            self._first = time.perf_counter()
        piece = self.run.take(logits, inside=inside)
        pieces = [] if piece is None else [piece]
        return pieces if self.run.reason is None else [*pieces, self.run.last(self._timings())]

    def _timings(self) -> Timings:
        steps = self.state.length - len(self.prompt)
        return Timings(
            prefill_tokens=len(self.prompt) - self.shared,
            prefill_seconds=self._first - self._began,
            decode_tokens=steps,
            decode_seconds=time.perf_counter() - self._first if steps else 0.0,
            first_token_seconds=self._first - self._asked,
        )
