"""Activation patching, path patching, causal tracing: how a metric changes when a part is as in another text.

    patching(lm, text, other, over="heads", answers=(" Paris", " Rome"))
    patching(lm, texts, others, over="z", answers=answers).mean()    # of pairs: [pair layer position head]
    path_patching(lm, text, other, answers=(" Paris", " Rome"))
    causal_tracing(lm, "The Eiffel Tower is in", range(1, 4), " Paris")

Where a patch moves the answer to the other text's, the patched activation holds the difference of the texts
(2309.16042 compares metrics). Path patching lets a head act on its receivers alone, all other heads as they
are (2211.00593, 2304.05969). Causal tracing restores parts of a text whose subject is noise (2202.05262).
``lm`` is a loaded model, edited or not, or a ``Subject``. All cells of a study are one sweep (``sweep.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.inspect.edits import Noise, Scale
from cutaway.inspect.inputs import has_pattern, output_heads
from cutaway.inspect.instrumented import Instrumented, Values
from cutaway.inspect.pairs import (
    Answers,
    LogitDifference,
    Pair,
    Pairs,
    differing,
    pairs,
    token_id,
    token_text,
    vocabulary_of,
)
from cutaway.inspect.result import Result
from cutaway.inspect.rows import Rows
from cutaway.inspect.subject import Metric, Subject, subject_of
from cutaway.inspect.sweep import sweep_of
from cutaway.inspect.sweep_cells import Cell, Setting
from cutaway.layers.config import MoE
from cutaway.store.files import Progress, silent

Over = Literal["residual", "attention", "mlp", "heads", "q", "k", "v", "z", "pattern"]
PARTS = {"residual": "out", "attention": "attention.out", "heads": "attention.z"}
PARTS |= {head: f"attention.{head}" for head in ("q", "k", "v", "z", "pattern")}
OVERS, HEADED = (*PARTS, "mlp"), ("heads", "q", "k", "v", "z", "pattern")
NOISE = 3.0  # standard deviations of the embeddings (2202.05262)


def activation(subject: Subject, over: str, layer: int) -> str:
    """The name of what is patched of a layer."""
    moe = isinstance(subject.config.blocks[layer].mlp, MoE)
    return f"blocks.{layer}.{PARTS.get(over, 'mlp.out' if moe else 'mlp.down')}"


def patching(
    lm: Any,
    text: Any,
    other: Any,
    over: Over = "residual",
    *,
    answers: Answers | Sequence[Answers] | None = None,
    metric: Metric | None = None,
    positions: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> Result:
    """Patches one activation of ``other`` into ``text`` at a time: how far the metric moves, 0 to 1.

    ``over`` the "residual" stream, "attention" or "mlp" outputs: [layer position], at ``positions`` (those
    that differ and the last, if None). Over "q", "k", "v", "z" or the "pattern" of each head:
    [layer position head]. Over "heads": [layer head], each one's z at all ``positions`` at once (None: all
    of the text's). Two lists of texts are pairs, of as many tokens each: [pair ...], whose ``mean()`` has an
    interval. ``metric`` takes logits [t v]; ``answers`` (this text's, the other's) make it their logit
    difference. ``resume``: a file that keeps finished effects, from which the same call goes on.
    """
    if over not in OVERS:
        raise UserError(f"over is {over!r}: use one of {', '.join(OVERS)}")
    subject, found = subject_of(lm), pairs(lm, text, other, answers, metric)
    chosen, at = _layers(subject, layers), _positions(found, positions, over)
    rows = found.rows(resume, "patching", over=over, positions=at, layers=chosen)
    names = {layer: activation(subject, over, layer) for layer in chosen if _has(subject, over, layer)}
    study = Study(subject, found, list(names.values()))
    ours, theirs = (study.values([getattr(one, of) for one in found.each]) for of in ("ids", "other"))
    return _patched(study, Patches(over, chosen, at, names, ours, theirs), rows, "patching", progress)


def causal_tracing(
    lm: Any,
    text: Any,
    noisy: Sequence[int],
    answer: str | int,
    over: Literal["residual", "attention", "mlp"] = "residual",
    *,
    noise: float = NOISE,
    seed: int = 0,
    positions: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> Result:
    """Restores one activation at a time of a text whose tokens at ``noisy`` are noise: [layer position].

    How far the answer's logit comes back, 0 to 1. ``noise``, drawn by ``seed``, is added in standard
    deviations of the text's embeddings. ``positions`` None: all. The rest as in ``patching``.
    """
    if over not in ("residual", "attention", "mlp"):
        raise UserError(f"over is {over!r}: use residual, attention or mlp")
    subject = subject_of(lm)
    ids, id, chosen = subject.encode(text), token_id(lm, answer), _layers(subject, layers)
    wrong = [p for p in (*noisy, *(positions or ())) if not -len(ids) <= p < len(ids)]
    if wrong or not len(noisy):
        what = f"there is no position {wrong[0]}" if wrong else "no token is noise"
        raise UserError(f"{what}: the text has {len(ids)} tokens, from 0")
    (clean,) = subject.values([ids], ["embed", "logits"], logits_at=[-1])
    strength = noise * float(clean["embed"].std())
    before = subject.edited(Noise(name="embed", positions=noisy, strength=strength, seed=seed))
    (noised,) = before.values([ids], ["logits"], logits_at=[-1])
    here, there = (float(each["logits"][0, id]) for each in (noised, clean))
    words = f"the logit of {token_text(subject, id)!r}"
    found = Pairs([Pair(ids, ids, LogitDifference(id, None), here, there, words, None)], False)
    at = list(range(len(ids))) if positions is None else [p % len(ids) for p in positions]
    options = {"over": over, "positions": at, "layers": chosen, "noisy": list(noisy), "seed": seed}
    rows = found.rows(resume, "causal tracing", noise=noise, **options)
    names = {layer: activation(subject, over, layer) for layer in chosen if _has(subject, over, layer)}
    study = Study(before, found, list(names.values()))
    theirs = study.engine.values([ids], study.names, [subject.edit])
    patches = Patches(over, chosen, at, names, study.values([ids]), theirs)
    return _patched(study, patches, rows, "causal tracing", progress)


class Patches(NamedTuple):
    """What a study patches: ``over`` which parts of which layers, where, and both sides' activations."""

    over: str
    layers: Sequence[int]
    at: Sequence[int] | None
    names: Mapping[int, str]
    ours: Sequence[Values]
    theirs: Sequence[Values]

    def cells(self) -> dict[tuple[int, ...], Cell | None]:
        """Each cell by its index: the pair, the layer's place, the position's, the head."""
        found: dict[tuple[int, ...], Cell | None] = {}
        for n, (ours, theirs) in enumerate(zip(self.ours, self.theirs, strict=True)):
            for layer, name in self.names.items():
                own, donor, at = ours[name], theirs[name], self.at
                spans = [[p] for p in at or ()]
                if self.over == "heads":
                    spans = [list(range(own.shape[1]) if at is None else at)]
                for p, span in enumerate(spans):
                    where = n, self.layers.index(layer), *(() if self.over == "heads" else (p,))
                    for head in range(len(own)) if self.over in HEADED else [None]:
                        index = where if head is None else (*where, head)
                        found[index] = _patch(n, name, own, donor, span, head)
        return found


def _patched(study: Study, patches: Patches, rows: Rows, what: str, progress: Progress) -> Result:
    """The effects of patches as a result."""
    found, over = study.found, patches.over
    effects = study.effects(patches.cells(), len(patches.layers), rows, what, progress)
    axes: dict[str, Sequence[Any]] = {"layer": patches.layers}
    axes |= {} if over == "heads" else {"position": study.labels(patches.at or ())}
    axes |= {"head": range(effects.shape[-1])} if over in HEADED else {}
    facts = found.facts | {"positions": patches.at}
    return Result(found.folded(effects), found.axis | axes, f"{what} over {over}", facts)


class Study:
    """Pairs of texts on the engine that shows and sets some activations of them."""

    def __init__(self, subject: Subject, found: Pairs, names: Sequence[str]) -> None:
        self.subject, self.found, self.edit, self.names = subject, found, subject.edit, names
        texts = [one.ids for one in found.each]
        self.engine = engine_for(subject, names, texts)
        self.vocabulary = vocabulary_of(subject)
        self.sweep = sweep_of(self.engine, texts, subject.edit)

    def values(self, texts: Sequence[Sequence[int]]) -> list[Values]:
        """The activations of each text."""
        return self.engine.values(texts, self.names, [self.edit] * len(texts))

    def labels(self, at: Sequence[int]) -> list[str]:
        """Each position, with its token where all pairs have the same there."""
        tokens = [{one.ids[p] for one in self.found.each} for p in at]
        return [
            f"{p} {token_text(self.subject, min(ids))}" if len(ids) == 1 else str(p)
            for p, ids in zip(at, tokens, strict=True)
        ]

    def effects(
        self,
        cells: Mapping[tuple[int, ...], Cell | None],
        layers: int,
        rows: Rows,
        what: str,
        progress: Progress,
    ) -> np.ndarray:
        """Each cell's effect at its index [pair layer ...]: 0 where it changes nothing (None), else NaN."""
        if not cells:
            raise UserError("none of these layers has this part")
        size = [1 + max(index[n] for index in cells) for n in range(len(next(iter(cells))))]
        values = np.full((size[0], layers, *size[2:]), np.nan)
        for index, cell in cells.items():
            if cell is None:
                values[index] = 0.0
        live = [(index, cell) for index, cell in cells.items() if cell is not None]
        batches, done = self.sweep.batches([cell for _, cell in live]), 0
        for n, some in enumerate(batches):
            read = partial(self._read, [live[i][1] for i in some])
            for i, effect in zip(some, rows.of(n, read), strict=True):
                values[live[i][0]] = effect
            done += len(some)
            progress(what, done, len(live))
        return values

    def _read(self, cells: Sequence[Cell]) -> list[float]:
        effects, tokens = [0.0] * len(cells), self.found.tokens
        for i, seen in self.sweep.run(cells, (), self.found.each[0].position, tokens):
            logits = seen.logits if tokens is not None else seen.logits[:, : self.vocabulary]
            effects[i] = self.found.each[cells[i].text].effect(logits, tokens)
        return effects


def engine_for(subject: Subject, names: Sequence[str], texts: Sequence[Sequence[int]]) -> Instrumented:
    """The engine that shows and sets activations of texts."""
    asked = [*names, "blocks.*.out", "logits"]
    under = (subject.edit, [Scale(name=name) for name in names])
    return subject.choose(asked, [under] * len(texts), list(map(len, texts)))[0]


def _patch(
    text: int, name: str, own: np.ndarray, donor: np.ndarray, span: Sequence[int], head: int | None
) -> Cell | None:
    """A text with another's activation at the positions of a span that differ; None where none does."""
    mine, theirs = (own, donor) if head is None else (own[head], donor[head])
    at = [p for p in span if not np.array_equal(mine[..., p, :], theirs[..., p, :])]
    return Cell(text, (Setting(name, theirs[..., at, :], at, head),)) if at else None


def _has(subject: Subject, over: str, layer: int) -> bool:
    """Whether a layer has what is patched."""
    block: Any = subject.config.blocks[layer]
    if over == "mlp":
        return block.mlp is not None
    if over in ("k", "v") and block.attention.kv_layer is not None:
        return False
    return over in ("residual", "attention") or has_pattern(block.attention)


def _positions(found: Pairs, asked: Sequence[int] | None, over: str) -> list[int] | None:
    """The positions that are patched, from 0; None for all of each text's, of heads alone."""
    lengths = {len(one.ids) for one in found.each}
    for position in asked or ():
        if not all(-length <= position < length for length in lengths):
            raise UserError(f"there is no position {position}: the texts have {min(lengths)} tokens, from 0")
    if over == "heads" and asked is None:
        return None
    if len(lengths) > 1:
        raise UserError(
            f"pairs of {min(lengths)} to {max(lengths)} tokens have no positions in common: give pairs of "
            'one length, or over="heads"'
        )
    if asked is not None:
        return [position % max(lengths) for position in asked]
    return sorted({p for one in found.each for p in differing(one.ids, one.other)})


def _layers(subject: Subject, asked: Sequence[int] | None) -> list[int]:
    """The layers asked for, negative ones counted from the last; all if None."""
    count = len(subject.config.blocks)
    if asked is not None and (
        not isinstance(asked, Iterable) or not all(isinstance(n, Integral) for n in asked)
    ):
        raise UserError(f"layers is a list of numbers, and this is {quoted(asked)}")
    for layer in () if asked is None else asked:
        if not -count <= layer < count:
            raise UserError(f"there is no layer {layer}: this model's layers are 0 to {count - 1}")
    if asked is not None and not len(asked):
        raise UserError("layers is empty: name at least one, or leave it out for all")
    return list(range(count)) if asked is None else list(dict.fromkeys(layer % count for layer in asked))


def path_patching(
    lm: Any,
    text: Any,
    other: Any,
    receivers: Sequence[tuple[str, int | None]] = (),
    *,
    answers: Answers | Sequence[Answers] | None = None,
    metric: Metric | None = None,
    layers: Sequence[int] | None = None,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> Result:
    """The effect [layer head] of each head of ``other`` by its direct paths alone to ``receivers``, 0 to 1.

    All other heads keep this text's outputs; MLPs between are computed anew. ``receivers``: activations and a
    head of each, such as ("blocks.9.attention.q", 3); none: the logits. Heads of all ``layers``, or of some.
    Two lists of texts are pairs: [pair layer head]. ``resume``: a file that keeps finished effects, from
    which the same call goes on.
    """
    subject, found = subject_of(lm), pairs(lm, text, other, answers, metric)
    chosen = _layers(subject, layers)
    zs = {
        layer: activation(subject, "heads", layer)
        for layer in range(len(subject.config.blocks))
        if _has(subject, "heads", layer)
    }
    rows = found.rows(resume, "path patching", receivers=list(receivers), layers=chosen)
    study = Paths(subject, found, list(zs.values()), receivers)
    ours, theirs = (
        study.values([one.ids for one in found.each]),
        study.values([one.other for one in found.each]),
    )
    cells = {
        (n, chosen.index(layer), head): _sent(n, zs, layer, head, ours[n], theirs[n])
        for n in range(len(found.each))
        for layer in chosen
        if layer in zs
        for head in range(len(ours[n][zs[layer]]))
    }
    effects = study.effects(cells, len(chosen), rows, "path patching", progress)
    to = (
        ", ".join(name if head is None else f"head {head} of {name}" for name, head in receivers)
        or "the logits"
    )
    axes = {"layer": chosen, "head": range(effects.shape[-1])}
    return Result(found.folded(effects), found.axis | axes, f"paths to {to}", found.facts)


def _sent(text: int, zs: Mapping[int, str], layer: int, head: int, own: Values, donor: Values) -> Cell | None:
    """A head of the other text, and no head after it that hears of it."""
    sent = _patch(text, zs[layer], own[zs[layer]], donor[zs[layer]], range(own[zs[layer]].shape[1]), head)
    if sent is None:
        return None
    at = range(sent.first, own[zs[layer]].shape[1])
    kept = [Setting(name, own[name][:, list(at)], at) for later, name in zs.items() if later > layer]
    return Cell(text, (*sent.settings, *kept))


class Paths(Study):
    """A study whose cells act through receivers alone: what these get is set in a second pass."""

    def __init__(
        self,
        subject: Subject,
        found: Pairs,
        names: Sequence[str],
        receivers: Sequence[tuple[str, int | None]],
    ) -> None:
        super().__init__(subject, found, [*names, *dict.fromkeys(name for name, _ in receivers)])
        self.receivers = receivers

    def _read(self, cells: Sequence[Cell]) -> list[float]:
        if not self.receivers:
            return super()._read(cells)
        names = list(dict.fromkeys(name for name, _ in self.receivers))
        received: list[Any] = [None] * len(cells)
        for batch in self.sweep.batches(cells):
            for i, seen in self.sweep.run([cells[n] for n in batch], names):
                received[batch[i]] = self._received(cells[batch[i]], seen.values)
        effects = [0.0] * len(cells)
        for batch in self.sweep.batches(received):
            values = super()._read([received[n] for n in batch])
            for n, effect in zip(batch, values, strict=True):
                effects[n] = effect
        return effects

    def _received(self, cell: Cell, values: Values) -> Cell:
        """The activations that receivers got, in a text that is otherwise unchanged."""
        at = range(cell.first, len(self.found.each[cell.text].ids))
        for name, head in self.receivers:
            if head is not None and not 0 <= head < len(values[name]):
                raise UserError(f"there is no head {head} of {name}: they are 0 to {len(values[name]) - 1}")
        parts = (
            (name, head, values[name] if head is None else values[name][head])
            for name, head in self.receivers
        )
        return Cell(
            cell.text, [Setting(name, part[..., list(at), :], at, head) for name, head, part in parts]
        )


def head_effects(lm: Any, text: Any, token: str | int, progress: Progress = silent) -> Result:
    """The drop of a token's logit [layer head] when each head alone is ablated.

    Unlike attribution this counts what later layers make of the head.
    """
    subject = subject_of(lm)
    ids, id = subject.encode(text), token_id(lm, token)
    names = {
        n: activation(subject, "heads", n)
        for n in range(len(subject.config.blocks))
        if _has(subject, "heads", n)
    }
    engine = engine_for(subject, list(names.values()), [ids])
    (own,) = engine.values([ids], [*names.values(), "logits"], [subject.edit], logits_at=[-1])
    counts = [output_heads(block.attention) for block in subject.config.blocks]
    cells, where = [], []
    for layer, name in names.items():
        nothing = np.zeros_like(own[name][0])
        cells += [Cell(0, (Setting(name, nothing, range(len(ids)), head),)) for head in range(counts[layer])]
        where += [(layer, head) for head in range(counts[layer])]
    values, sweep, done = (
        np.full((len(counts), max(counts)), np.nan),
        sweep_of(engine, [ids], subject.edit),
        0,
    )
    for some in sweep.batches(cells):
        for i, seen in sweep.run([cells[n] for n in some], (), -1, [id]):
            values[where[some[i]]] = own["logits"][0, id] - seen.logits[0]
        done += len(some)
        progress("ablating heads", done, len(cells))
    axes = {"layer": range(len(counts)), "head": range(max(counts))}
    return Result(values, axes, "ablated heads", {"token": token})
