"""One step: what is read of each text in one call of the engine, and what each gets of the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from cutaway.generate.batch.sequence import Answer
from cutaway.generate.decode import mask_padding
from cutaway.generate.engine import BatchedEngine
from cutaway.generate.internals import Internals, LayerInternals, seen


@dataclass
class Part:
    """Some ids of one text. After the call: float32 [n v], the logits after those that ``wanted`` names, and
    where the last of them is watched the lens's logits float32 [v] and the attention float32 [h s] of each
    layer.
    """

    answer: Answer
    ids: Sequence[int]
    logits: np.ndarray | None = None
    watched: Internals | None = None
    lens: Sequence[np.ndarray] = ()
    patterns: Sequence[np.ndarray] = ()

    @property
    def inside(self) -> tuple[LayerInternals, ...]:
        """What was seen at the last id, in short."""
        if self.watched is None:
            return ()
        return tuple(
            seen(
                layer,
                self.patterns[n] if self.patterns else None,
                mask_padding(self.lens[n], self.answer.run.words) if self.lens else None,
                self.watched.lens,
            )
            for n, layer in enumerate(self.watched.layers)
        )

    @property
    def wanted(self) -> range:
        """Which of the ids need logits: the last, if it is not one inside the prompt, or all of a prompt
        whose own log-probabilities are asked for.
        """
        count, end = len(self.ids), self.answer.state.length + len(self.ids)
        if self.answer.stream.request.prompt_logprobs is not None and end <= len(self.answer.prompt):
            return range(count)
        return range(count - 1, count) if end >= len(self.answer.prompt) else range(0)

    @property
    def internals(self) -> Internals | None:
        """What is watched at the last id, None where no token is chosen after it."""
        chosen = self.answer.state.length + len(self.ids) >= len(self.answer.prompt)
        return self.answer.stream.request.internals if chosen else None


def read(engine: BatchedEngine, parts: Sequence[Part]) -> None:
    """One call of the engine. It looks inside only where somebody asked it to."""
    rows: list[int] = []
    after: list[int] = []
    watched: list[tuple[int, int]] = []
    counts, start = [], 0
    for part in parts:
        own, last = [start + at for at in part.wanted], start + len(part.ids) - 1
        internals = part.internals
        lens, looks = _watch(internals, last)
        counts.append((len(own), len(lens), len(looks), internals))
        rows += own + [last] * len(lens)
        after += [engine.layers - 1] * len(own) + lens
        watched += looks
        start += len(part.ids)
    texts, states = [part.ids for part in parts], [part.answer.state for part in parts]
    if len(watched) or any(lens for _, lens, _, _ in counts):
        logits, patterns = engine.watch(texts, states, rows, after, watched)
    else:
        logits, patterns = engine.read(texts, states, rows), []
    at, drawn = 0, iter(patterns)
    for part, (own, lens, looks, internals) in zip(parts, counts, strict=True):
        part.logits, part.lens = logits[at : at + own], list(logits[at + own : at + own + lens])
        part.watched, part.patterns = internals, list(islice(drawn, looks))
        at += own + lens


def _watch(internals: Internals | None, place: int) -> tuple[list[int], list[tuple[int, int]]]:
    """The layers whose lens is asked for, and the places and layers whose attention is."""
    if internals is None:
        return [], []
    layers = list(internals.layers)
    return layers if internals.lens else [], [(place, layer) for layer in layers if internals.attention]
