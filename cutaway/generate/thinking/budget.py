"""Budget forcing (s1, 2501.19393): at a limit of thought, the sampler writes the marker that ends it.

A model whose template opens a thought (``<think>``) writes until it closes it. Once ``limit`` tokens of
thought are written, the ids of the closing marker are the only ones allowed, one after another; the answer
follows. Before ``least`` tokens, a closing marker that the model would choose is replaced by "Wait". A
grammar holds for the answer alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.bounds import Bounded, Natural
from cutaway.errors import UserError
from cutaway.generate.batch.request import Constraint
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.thinking import Judge, Thought, Writer

MARKERS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel>thought", "<channel|>"),
)
LONGER = "\nWait"


@dataclass(frozen=True)
class Config(Bounded):
    """At most ``limit`` tokens of thought, at least ``least``."""

    limit: Natural
    least: Natural = 0

    def answer(
        self, writer: Writer, prompts: Sequence[Sequence[int]], settings: SamplingParams, judge: Judge
    ) -> list[Thought]:
        """One answer for each prompt. UserError for a model without markers of thought."""
        begin, end = markers(writer.tokenizer)
        limits = [Budget(writer.tokenizer, begin, end, ids, self.limit, self.least) for ids in prompts]
        made = writer.write(prompts, [settings] * len(prompts), limits)
        return [Thought(each, (each,), len(each.ids)) for each in made]


def markers(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that open and close a thought; UserError for a vocabulary that has none."""
    for begin, end in MARKERS:
        found = [tuple(tokenizer.encode(marker, special="allow")) for marker in (begin, end)]
        if any(id in tokenizer.special.values() for ids in found for id in ids):
            return found[0], found[1]
    spelt = ", ".join(begin for begin, _ in MARKERS)
    raise UserError(f"the model's vocabulary has no marker that opens a thought ({spelt}): it has no budget")


class Budget:
    """The constraint of one answer: ``inner`` holds for what follows the thought."""

    def __init__(
        self,
        tokenizer: Any,
        begin: tuple[int, ...],
        end: tuple[int, ...],
        prompt: Sequence[int],
        limit: int,
        least: int = 0,
        inner: Constraint | None = None,
    ) -> None:
        self.begin, self.end, self.limit, self.least, self.inner = begin, end, limit, least, inner
        self.longer = tuple(tokenizer.encode(LONGER))
        self.thought = 0  # tokens of it
        self.forced: list[int] = []
        self.recent: list[int] = list(prompt)
        self.open = _last(self.recent, begin) > _last(self.recent, end)

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return not self.open and self.inner is not None and self.inner.done

    def mask(self, logits: np.ndarray) -> None:
        """What may come next."""
        if not self.forced and self.open:
            if self.thought >= self.limit:
                self.forced = list(self.end)
            elif self.thought < self.least and int(logits.argmax()) == self.end[0]:
                self.forced = list(self.longer)
        if self.forced:
            kept = logits[self.forced[0]]
            logits[:] = -np.inf
            logits[self.forced[0]] = max(kept, 0.0) if np.isfinite(kept) else 0.0
        elif not self.open and self.inner is not None:
            self.inner.mask(logits)

    def accept(self, id: int) -> None:
        """Advance by the chosen id."""
        if self.forced:
            del self.forced[0]
        self.recent.append(id)
        if self.open:
            self.thought += 1
            self.open = tuple(self.recent[-len(self.end) :]) != self.end
        elif tuple(self.recent[-len(self.begin) :]) == self.begin and self.inner is None:
            self.open = True
        elif self.inner is not None:
            self.inner.accept(id)


def _last(ids: Sequence[int], marker: tuple[int, ...]) -> int:
    """Where the marker last begins, -1 where it does not occur."""
    size = len(marker)
    return max((n for n in range(len(ids) - size + 1) if tuple(ids[n : n + size]) == marker), default=-1)
