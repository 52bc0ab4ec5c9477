"""A run's text made ready: sources resolved, a tokenizer chosen, tokens in shards, rows assigned."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from cutaway.data import cluster, filters, novels, packing, run_tokenizer, shards, sources
from cutaway.data.shards import Corpus
from cutaway.errors import UserError, plural
from cutaway.quantization import formats
from cutaway.tokenizer import Tokenizer
from cutaway.train.config import NOVELS, DataConfig, TrainingConfig
from cutaway.train.folder import MODEL, TOKENIZER
from cutaway.train.training import Dataset, Training
from cutaway.weights import save
from cutaway.weights.checkpoint import Checkpoint
from cutaway.weights.named_tensors import Tensors

TRAINED_ON = 20_000  # documents that a tokenizer is trained on at most
Note = Callable[[str], None]


def resolved(run: TrainingConfig, folder: Path, note: Note) -> TrainingConfig:
    """The run with local sources, its tokenizer in ``folder``, and a known vocabulary."""
    places = tuple(replace(s, path=str(novels.folder())) if s.path == NOVELS else s for s in run.data.sources)
    if not places:
        raise UserError("config.data.sources: names no source of text")
    for place in places:
        sources.check_exists(place)
    data = replace(run.data, sources=places)
    tokenizer = _tokenizer(data, folder / TOKENIZER, note)
    run_tokenizer.ends(tokenizer)
    vocab = run.model.vocab or run_tokenizer.padded(len(tokenizer))
    if vocab < len(tokenizer):
        raise UserError(f"config.model.vocab: {vocab} is fewer than the tokenizer's {len(tokenizer)} tokens")
    return replace(run, data=data, model=replace(run.model, vocab=vocab))


def ready(run: TrainingConfig, folder: Path, note: Note) -> Dataset:
    """The rows of a resolved run; tokenises what is not yet, and notes what cleaning dropped."""
    home = Path(run.data.folder) if run.data.folder else folder / "data"
    corpora = []
    for n, source in enumerate(run.data.sources):
        words, into, rules = folder / TOKENIZER, home / str(n), run.data.filters
        if run.data.ray:
            corpus = cluster.prepare(source, words.absolute(), into.absolute(), rules=rules)
        else:
            corpus = shards.prepare(source, words, into, rules=rules, workers=run.data.workers)
        dropped = {name: count for name, count in corpus.counts.items() if name not in ("read", "kept")}
        listed = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in dropped.items())
        note(
            f"{source.path}: {plural(corpus.counts['kept'], 'document')}, {plural(corpus.tokens, 'token')}"
            + (f"; left out: {listed}" if listed else "")
        )
        corpora.append(corpus)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    lengths = torch.zeros(run.model.vocab, dtype=torch.int64)
    lengths[: len(tokenizer)] = torch.tensor(run_tokenizer.lengths(tokenizer))
    context, seed = run.model.context, run.seed
    cuts = [corpus.tokens - round(corpus.tokens * run.data.validation_fraction) for corpus in corpora]
    spans = [
        packing.Span(corpus, 0, cut, context, packing.number(seed, "source", n))
        for n, (corpus, cut) in enumerate(zip(corpora, cuts, strict=True))
    ]
    mixture = packing.Mixture(spans, _weights(run.data, spans), seed)
    begin, _ = run_tokenizer.ends(tokenizer)

    def prompt(text: str) -> list[int]:
        return [begin, *tokenizer.encode(text)]

    return Dataset(mixture, _held_out(corpora, cuts, context), lengths, tokenizer, prompt, export)


def export(training: Training, folder: Path) -> None:
    """The model as a folder that ``cutaway.load`` opens, and transformers where a family describes it."""
    weights = training.trained()
    if training.parallel.rank:
        return
    own = training.run.model.weights()  # without what the objective trains beside them
    tensors = Tensors({name: formats.pack(weights[name].numpy(), "F32") for name in own})
    tokenizer = training.data.tokenizer
    checkpoint = Checkpoint(
        training.run.model,
        tensors,
        None,
        folder / TOKENIZER,
        lambda: tokenizer,
        chat_template=tokenizer.chat_template,
    )
    save.write_checkpoint(folder / MODEL, checkpoint, "safetensors", force=True)


def _tokenizer(data: DataConfig, folder: Path, note: Note) -> Tokenizer:
    if not (folder / run_tokenizer.FILES[1]).is_file():
        if data.tokenizer.startswith("bpe:"):
            note(f"Training a tokenizer ({data.tokenizer}) on the text.")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            made = run_tokenizer.of(data.tokenizer, islice(_cleaned(data), TRAINED_ON))
        for warning in caught:
            note(f"config.data.tokenizer: {warning.message}")
        run_tokenizer.save(made, folder)
    return Tokenizer.load(folder)


def _cleaned(data: DataConfig) -> Iterator[str]:
    from collections import Counter

    for source in data.sources:
        yield from filters.kept(sources.documents(source), data.filters, Counter())


def _weights(data: DataConfig, spans: list[packing.Span]) -> list[float]:
    """Each source's weight: as given, or by its length where none is."""
    given = [source.weight for source in data.sources]
    if all(weight is None for weight in given):
        return [float(span.rows) for span in spans]
    if any(weight is None for weight in given):
        raise UserError("config.data.sources: give every source a weight, or none")
    return [float(weight) for weight in given if weight is not None]


def _held_out(corpora: list[Corpus], cuts: list[int], context: int) -> packing.Span | None:
    """The end of the first source that has enough of it."""
    for corpus, cut in zip(corpora, cuts, strict=True):
        if corpus.tokens - cut > 2 * context:
            return packing.Span(corpus, cut, corpus.tokens, context, 0)
    return None
