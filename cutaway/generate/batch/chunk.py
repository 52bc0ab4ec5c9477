"""The input of one step: a chunk of each sequence, in one call of the engine."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from cutaway.generate.batch.observation import LOGITS, LOOKS, Observation
from cutaway.generate.batch.sequence import ScheduledSequence
from cutaway.generate.engine import BatchedEngine, Observable
from cutaway.generate.internals import Internals, LayerInternals, summarize
from cutaway.generate.sample import mask_padding


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
        start, page = sequence.state.length, sequence.engine.page
        self.begins_page = (start + count - 1) // page > (start - 1) // page  # one of its ids is the first
        self.samples = samples = start + count >= len(sequence.prompt)  # a token is chosen after this chunk
        scored = sequence.request.prompt_logprobs is not None and not sequence.decoding
        observation = None if sequence.decoding else sequence.request.observation
        self.observed_at = [] if observation is None else observation.within(start, count)
        self.observation = observation if self.observed_at or samples else None
        self.logits_at: Sequence[int] = range(0 if scored else count - samples - len(self.draft), count)
        if observation is not None and LOGITS in observation.names:
            self.logits_at = sorted({*self.observed_at, *self.logits_at})
        self.internals: Internals | None = sequence.request.internals if samples else None

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
