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
from cutaway.generate.bounded import BoundedConstraint
from cutaway.generate.sampling_params import SamplingParams
from cutaway.generate.thinking.strategy import Judge, Thought, Writer
from cutaway.generate.tool_calls.thoughts import Marks

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
        limits = [
            Budget(writer.tokenizer, begin, end, _last(ids, begin) > _last(ids, end), self.limit, self.least)
            for ids in prompts
        ]
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
    """The constraint of one answer, which begins inside a thought where ``open``, or may begin with one:
    ``inner`` holds for what follows the thought; with ``total`` it is a grammar's, and its text complete
    within so many tokens, the thought's included. A ``limit`` of None ends none. Markers are found in the
    bytes of what is written: a vocabulary that spells them in several tokens may cut them in several ways.
    """

    def __init__(
        self,
        tokenizer: Any,
        begin: Sequence[int],
        end: Sequence[int],
        open: bool,
        limit: int | None,
        least: int = 0,
        inner: Any = None,
        total: int | None = None,
    ) -> None:
        self.tokenizer, self.begin, self.end = tokenizer, tuple(begin), tuple(end)
        self.begins_open, self.limit, self.least = open, limit, least
        self.given, self.inner, self.total = inner, inner, total
        self.open, self.before = open, not open  # before: a thought may still begin
        self.longer = tuple(tokenizer.encode(LONGER)) if least else ()
        self.opening, self.closing = (b"".join(map(tokenizer.token_bytes, ids)) for ids in (begin, end))
        self.thought = 0  # tokens of it
        self.forced: list[int] = []
        self.text = b""  # what was written last

    def fresh(self) -> Budget:
        """The same for another answer."""
        inner = self.given and self.given.fresh()
        given = (self.begins_open, self.limit, self.least, inner, self.total)
        return Budget(self.tokenizer, self.begin, self.end, *given)

    @property
    def done(self) -> bool:
        """Whether the answer is complete."""
        return not self.open and self.inner is not None and self.inner.done

    def mask(self, logits: np.ndarray) -> None:
        """The tokens that may come next."""
        if not self.forced and self.open:
            if self.limit is not None and self.thought >= self.limit:
                self.forced = list(self.end)
            elif self.thought < self.least and int(logits.argmax()) == self.end[0]:
                self.forced = list(self.longer)
        if self.forced:
            kept = logits[self.forced[0]]
            logits[:] = -np.inf
            logits[self.forced[0]] = max(kept, 0.0) if np.isfinite(kept) else 0.0
        elif self.inner is not None and self.open:
            logits[list(self.tokenizer.eos_ids)] = -np.inf  # the answer that inner holds is still to come
        elif self.inner is not None:
            self.inner.mask(logits)

    def accept(self, id: int) -> None:
        """Advance by the chosen id."""
        if self.forced:
            del self.forced[0]
        if not self.open and self.inner is not None:
            self.inner.accept(id)
            return
        piece = self.tokenizer.token_bytes(id)
        if self.open:
            self.thought += 1
            self.text = (self.text + piece)[-len(self.closing) - len(piece) :]
            self.open = self.closing not in self.text
            if not self.open and self.total is not None and self.inner is not None:
                self.inner = BoundedConstraint(self.given, self.tokenizer, self.total - self.thought)
        elif self.before:
            self.text = (self.text + piece).lstrip()
            self.open = self.text.startswith(self.opening)
            self.before = not self.open and self.opening.startswith(self.text)


def of_marks(
    tokenizer: Any, marks: Marks, limit: int | None, inner: Any = None, total: int | None = None
) -> Budget:
    """The budget of an answer whose thought has these marks."""
    begin, end = (tokenizer.encode(mark, special="allow") for mark in (marks.begin, marks.end))
    return Budget(tokenizer, begin, end, marks.opened, limit, inner=inner, total=total)


def _last(ids: Sequence[int], marker: tuple[int, ...]) -> int:
    """The index of the marker's last occurrence, -1 without one."""
    size = len(marker)
    return max((n for n in range(len(ids) - size + 1) if tuple(ids[n : n + size]) == marker), default=-1)
