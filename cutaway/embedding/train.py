"""Training word vectors on a file, by the native core or the reference implementation."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cutaway import native
from cutaway.embedding import corpus, word2vec
from cutaway.embedding.corpus import Report, Vocabulary
from cutaway.embedding.word2vec import Model, Settings
from cutaway.errors import UserError
from cutaway.native.corpus import Dictionary
from cutaway.native.word2vec import Learner

BATCH = 24  # pieces a thread takes between two reports: about a third of a second


Watch = Callable[[Report, Model], None]


def ignore(report: Report, model: Model) -> None:
    """Watch nothing."""


def train(
    path: Path, known: Vocabulary, settings: Settings, *, threads: int | None = None, watch: Watch = ignore
) -> Model:
    """Learn from a corpus.

    ``watch`` is called with a report and the model; what it raises ends training, and the model it saw last
    keeps what was learned.

    One thread gives the same vectors each time; several give others each time
    (native/embedding/word2vec.cpp).
    """
    threads = native.threads() if threads is None else threads
    if threads < 1:
        raise UserError(f"{threads} threads cannot train; use at least 1")
    model = word2vec.begin(known, settings)
    watch(Report(0, model.total(), 0.0, 0), model)
    learn = _native if native.available() else _reference
    learn(path, model, threads, watch)
    return model


def _native(path: Path, model: Model, threads: int, watch: Watch) -> None:
    settings, start = model.settings, time.perf_counter()
    with corpus.opened(path) as file, Dictionary([word.encode() for word in model.vocabulary.words]) as words:
        learner = Learner(
            words,
            model.input,
            model.output,
            model.draws,
            kind=settings.kind,
            window=settings.window,
            negative=settings.negative,
            total=model.total(),
            rate=settings.start,
            least_rate=settings.start * 1e-4,
            seed=settings.seed,
        )
        done, pieces = 0, corpus.pieces(file)
        for epoch in range(settings.epochs):
            for first in range(0, pieces, BATCH * threads):
                last = min(first + BATCH * threads, pieces)
                done = learner.learn(file, epoch, first, last, done, threads)
                watch(Report(done, model.total(), time.perf_counter() - start, epoch), model)


def _reference(path: Path, model: Model, threads: int, watch: Watch) -> None:
    done, start = 0, time.perf_counter()
    with corpus.opened(path) as file:
        for epoch in range(model.settings.epochs):
            for piece in range(corpus.pieces(file)):
                done = word2vec.learn(model, file, epoch, piece, done)
                watch(Report(done, model.total(), time.perf_counter() - start, epoch), model)
