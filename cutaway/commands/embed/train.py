"""`cutaway embed train`: word vectors from a text file, with progress; Ctrl-C keeps what was learned."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from cyclopts import Parameter

from cutaway import native
from cutaway.commands import console
from cutaway.commands.options import Flag, Force, Json, Words
from cutaway.embedding import corpus, glove, word2vec
from cutaway.embedding.corpus import Report, Vocabulary
from cutaway.embedding.vectors import Vectors, Watched
from cutaway.errors import UserError
from cutaway.store.files import check_file, disk_errors
from cutaway.weights.vectors import write_vectors

LOOKS = 10  # times that a watched word is looked at


def train(
    file: Path,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    kind: Literal["skipgram", "cbow", "fasttext", "glove"] = "skipgram",
    dim: int = 100,
    window: int = 5,
    negative: int | None = None,
    hierarchical: Flag = False,
    epochs: int | None = None,
    min_count: int = 5,
    sample: float | None = None,
    learning_rate: float | None = None,
    x_max: float | None = None,
    threads: int | None = None,
    seed: int = 1,
    watch: Words = (),
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Learn a vector for each word of a text: words between spaces, a sentence a line.

    The text is a file, or the text files in a folder, joined in a temporary one. It is read anew in each
    epoch and never held: it may be larger than memory. Ctrl-C writes what was learned so far. One thread
    gives the same vectors each time; several write to one table without locks.

    **Examples:**

    cutaway embed train corpus.txt --output words.safetensors

    cutaway embed train novels/ --output words.vec --kind cbow --dim 300 --negative 10 --watch king

    cutaway embed train corpus.txt --output glove.txt --kind glove --window 10 --x-max 10

    :param file: The corpus, UTF-8: a file, or a folder.
    :param output: Where to write: .safetensors, .bin and .vec (word2vec), or GloVe's text for any other
        ending.
    :param kind: skipgram, cbow, fasttext (subwords) or glove (co-occurrence).
    :param dim: Numbers in a vector.
    :param window: How many words on either side are its context.
    :param negative: Words of noise against each right one: 5 unless given.
    :param hierarchical: Hierarchical softmax instead of negative sampling.
    :param epochs: Passes over the corpus: 5, and 25 over GloVe's counts.
    :param min_count: Leave out words that come less often.
    :param sample: Subsampling of frequent words: 0.001, and 0 for none.
    :param learning_rate: At the start: 0.025, cbow 0.075, fasttext and glove 0.05.
    :param x_max: GloVe: the count from which on all weigh alike, 100.
    :param threads: How many: all cores.
    :param seed: Of the random numbers.
    :param watch: Show what this word's vector learns: its neighbours, ten times on the way.
    """
    check_file(output, force)
    _check(kind, negative, hierarchical, sample, x_max)
    count = native.threads() if threads is None else threads
    with _joined(file) as text, console.watched() as bar:
        known = _vocabulary(text, min_count, count)
        meter = _Meter(known, _watched(watch, known), "counts" if kind == "glove" else "words", bar)
        given = {"epochs": epochs, "learning_rate": learning_rate}
        if kind == "glove":
            settings = glove.GloveSettings(dim=dim, window=window, seed=seed, **_only(**given, most=x_max))
            learn: Callable[[], object] = partial(_glove, text, known, settings, count, meter)
        else:
            noise = 0 if hierarchical else 5 if negative is None else negative
            chosen = word2vec.Word2VecSettings(
                kind=kind, dim=dim, window=window, negative=noise, seed=seed, **_only(**given, sample=sample)
            )
            learn = partial(word2vec.train, text, known, chosen, threads=count, watch=meter.see)
        stopped = False
        try:
            learn()
        except KeyboardInterrupt:
            if meter.model is None:
                raise
            stopped = True
    _save(output, meter, stopped, force, as_json)
    if stopped:
        raise KeyboardInterrupt


def _only(**values: object) -> dict:
    """The options that were given: the others keep their defaults."""
    return {name: value for name, value in values.items() if value is not None}


def _check(
    kind: str, negative: int | None, hierarchical: bool, sample: float | None, x_max: float | None
) -> None:
    if hierarchical and negative is not None:
        raise UserError("--hierarchical is used instead of --negative: give one of them")
    if negative == 0:
        raise UserError("--negative 0 leaves nothing to tell words from: give 1 or more, or --hierarchical")
    if kind == "glove" and (negative is not None or hierarchical or sample is not None):
        raise UserError("glove fits counts: it has no --negative, --hierarchical or --sample")
    if kind != "glove" and x_max is not None:
        raise UserError(f"--x-max is glove's, and the kind is {kind}")


@contextmanager
def _joined(source: Path) -> Iterator[Path]:
    """The file itself, or the text files in a folder as one, for as long as it is read."""
    files = console.text_files([source])
    if files == [source]:
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        with (
            disk_errors(folder, "point TMPDIR at another disk"),
            (Path(folder) / source.name).open("wb") as out,
        ):
            for file in files:
                with file.open("rb") as part:
                    shutil.copyfileobj(part, out)
                out.write(b"\n")
        yield Path(out.name)


def _vocabulary(file: Path, least: int, threads: int) -> Vocabulary:
    with console.watched() as bar:
        known = corpus.vocabulary(file, least, threads, bar)
    console.note(f"{len(known):,} words, {int(known.counts.sum()):,} times in all")
    return known


def _watched(words: tuple[str, ...], known: Vocabulary) -> Watched | None:
    ids = {word: id for id, word in enumerate(known.words)} if words else {}
    for word in words:
        if word not in ids:
            raise UserError(f"{word!r} cannot be watched: the vocabulary lacks it (see --min-count)")
    return Watched({word: ids[word] for word in words}, known.words) if words else None


def _glove(file: Path, known: Vocabulary, settings: glove.GloveSettings, threads: int, meter: _Meter) -> None:
    with glove.count(file, known, settings, threads) as counts:
        console.note(f"{len(counts):,} pairs of words co-occur")
        glove.train(known, counts, settings, threads=threads, watch=meter.see)


class _Meter:
    """Shows how far training is, keeps the model of the last report, and records watched words."""

    def __init__(self, known: Vocabulary, watched: Watched | None, unit: str, bar: console.Progress) -> None:
        self.known, self.watched, self.unit, self.bar = known, watched, unit, bar
        self.model: word2vec.Model | glove.Model | None = None
        self.report = Report(0, 1, 0.0, 0)
        self._look = 0

    def see(self, report: Report, model: word2vec.Model | glove.Model) -> None:
        """Called by training."""
        self.report, self.model = report, model
        if self.watched is not None and report.done * LOOKS >= self._look * report.total:
            self.watched.record(report.done, model.vectors())
            self._look = report.done * LOOKS // report.total + 1
        if report.done:
            detail = f"epoch {report.epoch + 1}/{model.settings.epochs}  {self.speed:,.0f} {self.unit}/s"
            self.bar(self.unit, report.done, report.total, detail)

    @property
    def speed(self) -> float:
        """Words or counts a second."""
        return self.report.done / max(self.report.seconds, 1e-9)


def _save(output: Path, meter: _Meter, stopped: bool, force: bool, as_json: bool) -> None:
    assert meter.model is not None
    model, known, report = meter.model, meter.known, meter.report
    parts = model.subwords if isinstance(model, word2vec.Model) else None
    grams = model.input[len(known) :] if isinstance(model, word2vec.Model) and parts is not None else None
    table = np.ascontiguousarray(model.vectors())
    write_vectors(output, Vectors(known.words, table, parts, grams), force=force)
    if parts is not None and output.suffix != ".safetensors":
        console.note(
            f"{output.name} holds whole words alone; .safetensors also keeps the n-grams of new words"
        )
    if stopped:
        console.note(f"Stopped after {report.done / report.total:.0%}: what was learned is saved.")
    if as_json:
        console.print_json(
            {
                "path": str(output),
                "words": len(known),
                "dim": table.shape[1],
                "done": report.done,
                "total": report.total,
                "seconds": report.seconds,
                "per_second": meter.speed,
                "finished": not stopped,
                "watched": _moments(meter.watched),
            }
        )
        return
    if meter.watched is not None:
        print(meter.watched)
    console.say(f"{output}: {len(known):,} words of {table.shape[1]} numbers, in {report.seconds:.1f} s")


def _moments(watched: Watched | None) -> dict:
    if watched is None:
        return {}
    return {
        name: [vars(one) | {"near": [near._asdict() for near in one.near]} for one in moments]
        for name, moments in watched.moments.items()
    }
