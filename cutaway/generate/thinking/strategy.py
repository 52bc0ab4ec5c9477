"""Shared by strategies of slow thinking: sampling, scoring, seeds, and their names as options."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from cutaway.errors import UserError
from cutaway.generate.batch.request import Constraint, Generation, Request
from cutaway.generate.batch.scheduler import Scheduler
from cutaway.generate.batch.sequence import TokenizerProtocol
from cutaway.generate.decode import finish
from cutaway.generate.engine import Engine
from cutaway.generate.sampling_params import SamplingParams

SPELT = {
    "best-of-N": (r"best-of-(\d+)", "best_of"),
    "vote-N": (r"vote-(\d+)", "vote"),
    "budget-N": (r"budget-(\d+)", "budget"),
    "tree-WxD": (r"tree-(\d+)x(\d+)", "tree"),
    "refine-N": (r"refine-(\d+)", "refine"),
}
WARM = 0.8  # the temperature of several samples where none is given


@dataclass(frozen=True)
class Thought:
    """The answer that was chosen, all that were written to their end, and how many tokens that took."""

    generation: Generation
    candidates: tuple[Generation, ...]
    tokens: int


def own_log_probability(_: int, generation: Generation) -> float:
    """The mean log-probability of a text's tokens: what the model itself thinks of it."""
    return sum(generation.logprobs) / max(len(generation.logprobs), 1)


def last_line(text: str) -> str | None:
    """The answer that a text ends with: its last line, without case and a final point."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".").casefold() if lines else None


@dataclass(frozen=True)
class Judge:
    """How answers to prompt n are judged.

    ``score(n, generation)``: higher is better. ``extract(text)``: the answer to vote on, None for none.
    ``follow_up(n, answers)``: the ids of the conversation that asks for a better answer than those so far.
    """

    score: Callable[[int, Generation], float] = own_log_probability
    extract: Callable[[str], str | None] = last_line
    follow_up: Callable[[int, Sequence[str]], Sequence[int]] | None = None


def judge(
    score: Callable[[str], float] | None = None,
    extract: Callable[[str], str | None] | None = None,
    follow_up: Callable[[int, Sequence[str]], Sequence[int]] | None = None,
) -> Judge:
    """A judge whose ``score`` is of a text; what is None is as in `Judge`."""
    made = Judge(follow_up=follow_up)
    if score is not None:
        made = replace(made, score=lambda _, generation: score(generation.text))
    return made if extract is None else replace(made, extract=extract)


@runtime_checkable
class Strategy(Protocol):
    """A strategy: how an answer is found by several generations."""

    def answer(
        self, writer: Writer, prompts: Sequence[Sequence[int]], settings: SamplingParams, judge: Judge
    ) -> list[Thought]:
        """A thought for each prompt, given as ids."""
        ...


class Writer:
    """Writes texts side by side with one model, and keeps the pages that they share. A context manager."""

    def __init__(self, engine: Engine, tokenizer: TokenizerProtocol, max_sequences: int = 16) -> None:
        self.tokenizer = tokenizer
        self._scheduler = Scheduler(engine, tokenizer, max_sequences=max_sequences, max_queue=1 << 20)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scheduler.close()

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        settings: Sequence[SamplingParams],
        constraints: Sequence[Constraint] | None = None,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Generation]:
        """Each prompt continued by its own settings, under its own constraint if there are any.

        ``progress`` gets how many are finished, in the prompts' order.
        """
        limits: Sequence[Any] = constraints or [None] * len(prompts)
        streams = [
            self._scheduler.submit(Request(tuple(ids), each, limit))
            for ids, each, limit in zip(prompts, settings, limits, strict=True)
        ]
        finished: list[Generation] = []
        for stream in streams:
            finished.append(finish(stream))
            progress(len(finished))
        return finished

    def samples(
        self, prompts: Sequence[Sequence[int]], settings: SamplingParams, count: int
    ) -> list[list[Generation]]:
        """``count`` samples of each prompt."""
        asked = [ids for ids in prompts for _ in range(count)]
        made = self.write(asked, [one for ids in prompts for one in samples(settings, count, ids)])
        return [made[at : at + count] for at in range(0, len(made), count)]

    @property
    def prompt_tokens(self) -> int:
        """Ids of prompts that were asked for so far."""
        return self._scheduler.stats().prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """Prompt ids whose pages were in the prefix cache."""
        return self._scheduler.stats().cached_tokens


def samples(settings: SamplingParams, count: int, prompt: Sequence[int]) -> list[SamplingParams]:
    """The settings of ``count`` samples of a prompt: each with its own seed, at WARM where no temperature is
    given.
    """
    warm = settings.temperature or WARM
    seed = settings.seed or 0
    return [replace(settings, temperature=warm, seed=seed_of(prompt, seed * count + n)) for n in range(count)]


def seed_of(prompt: Sequence[int], seed: int) -> int:
    """A prompt's own seed. With one seed for all, one draw of luck would decide the answers to all prompts,
    and questions would not be independent.
    """
    return seed + zlib.crc32(np.asarray(prompt, np.int64).tobytes())


def parse(spelt: str) -> Strategy:
    """A strategy as it is spelt: best-of-8, vote-16, budget-256, tree-4x3, refine-2, else UserError."""
    for pattern, name in SPELT.values():
        found = re.fullmatch(pattern, spelt)
        if found:
            return import_module(f"cutaway.generate.thinking.{name}").Config(*map(int, found.groups()))
    raise UserError(f"there is no way of thinking {spelt!r}: use {', '.join(SPELT)}")
