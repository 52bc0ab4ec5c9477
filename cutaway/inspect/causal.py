"""Causal effects: how a metric of the answer changes when a part of the model has another text's activation.

    patching(lm, text, other, over="heads", answers=(" Paris", " Rome"))
    path_patching(lm, text, other, answers=(" Paris", " Rome"))

Where a patch moves the answer to the other text's, the patched activation holds the difference of the texts
(2202.05262 calls it causal tracing; 2309.16042 compares metrics). Path patching lets a head act on its
receivers alone, all other heads as they are (2211.00593, 2304.05969). ``lm`` is a loaded model, edited or
not, or a ``Subject``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import UserError
from cutaway.hooks import Listener
from cutaway.inspect.inputs import output_heads
from cutaway.inspect.result import Result
from cutaway.inspect.rows import Rows
from cutaway.inspect.trace import Metric, Subject, subject_of
from cutaway.layers.config import MoE
from cutaway.shapes import Float
from cutaway.store.files import Progress, silent

Over = Literal["residual", "attention", "mlp", "heads"]
Answers = tuple[str | int, str | int]
ROWS, TOKENS = 32, 2048  # texts in one pass, and tokens of them all


def token_id(lm: Any, token: str | int) -> int:
    """The id of a token given as text or id; UserError for a text of several tokens."""
    if isinstance(token, int):
        return token
    subject = subject_of(lm)
    ids = subject.tokenizer.encode(token)  # pyright: ignore[reportAttributeAccessIssue]
    if len(ids) != 1:
        raise UserError(
            f"{token!r} is {len(ids)} tokens: an answer is one, with its space ({' ' + token.strip()!r})"
        )
    return ids[0]


def logit_difference(lm: Any, answers: Answers, position: int = -1) -> Metric:
    """The logit of the first answer less that of the second, at a position."""
    first, second = (token_id(lm, one) for one in answers)
    return lambda logits: logits[position, first] - logits[position, second]


class Pair(NamedTuple):
    """Two texts' ids of equal length, the metric that tells them apart, its value on each, and its name."""

    ids: list[int]
    other: list[int]
    metric: Metric
    here: float
    there: float
    words: str
    answers: tuple[int, int] | None

    def recovered(self, value: float) -> float:
        """From this text's metric (0) to the other's (1)."""
        return (value - self.here) / (self.there - self.here)

    @property
    def facts(self) -> dict[str, Any]:
        return {"metric": self.words, "here": self.here, "there": self.there, "answers": self.answers}

    def rows(self, path: str | Path | None, study: str, **options: Any) -> Rows:
        """The finished rows of a study of the pair; another model or edit shows in ``here`` and ``there``."""
        ends = {name: f"{value:.3g}" for name, value in (("here", self.here), ("there", self.there))}
        of = {"study": study, "ids": self.ids, "other": self.other, "metric": self.words, **ends, **options}
        return Rows(path, of)


def pair(lm: Any, text: Any, other: Any, answers: Answers | None, metric: Metric | None) -> Pair:
    """Two texts made comparable; without answers or a metric, each text's likeliest token is its answer.

    ``answers`` are (this text's, the other's). Raises UserError unless the texts have as many tokens, differ,
    and differ in the metric.
    """
    subject = subject_of(lm)
    ids, theirs = (subject.encode(one) for one in (text, other))
    differing(ids, theirs)
    traces = subject.trace([ids, theirs], ["logits"])
    words, chosen = "the metric given", None
    if metric is None:
        if answers is None:
            answers = (int(traces[0].logits[-1].argmax()), int(traces[1].logits[-1].argmax()))
        mine, yours = chosen = token_id(lm, answers[0]), token_id(lm, answers[1])
        if mine == yours:
            raise UserError(
                f"both texts have the same answer, {traces[0].token(mine)!r}, so patching has nothing to "
                "move: give answers="
            )
        metric = logit_difference(lm, (yours, mine))
        words = f"{traces[0].token(yours)!r} - {traces[0].token(mine)!r}"
    here, there = (float(metric(trace.logits)) for trace in traces)
    if here == there:
        raise UserError("the metric is the same for both texts, so patching has nothing to move")
    return Pair(ids, theirs, metric, here, there, words, chosen)


def differing(ids: Sequence[int], other: Sequence[int]) -> list[int]:
    """The positions where two texts differ, and the last. UserError unless they can be compared."""
    if len(ids) != len(other):
        raise UserError(
            f"patching needs texts of equal length: this one has {len(ids)} tokens, the other {len(other)}; "
            "reword one of them"
        )
    found = [i for i, (a, b) in enumerate(zip(ids, other, strict=True)) if a != b]
    if not found:
        raise UserError("both texts are the same, so patching has nothing to move")
    return sorted({*found, len(ids) - 1})


def activation(subject: Subject, over: Over, layer: int) -> str:
    """The name of what is patched of a layer."""
    moe = isinstance(subject.model.config.blocks[layer].mlp, MoE)
    part = {"residual": "out", "attention": "attention.out", "heads": "attention.z"}
    return f"blocks.{layer}.{part.get(over, 'mlp.out' if moe else 'mlp.down')}"


def patching(
    lm: Any,
    text: Any,
    other: Any,
    over: Over = "residual",
    *,
    answers: Answers | None = None,
    metric: Metric | None = None,
    positions: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> Result:
    """Patches one activation of ``other`` into ``text`` at a time: how far the metric moves, 0 to 1.

    ``over`` the "residual" stream, "attention" or "mlp" outputs: [position layer], at ``positions`` (those
    that differ and the last, if None). Over "heads": [layer head], each at all ``positions`` at once (None:
    all of the text's).
    Of all ``layers``, or of some. ``metric`` takes logits [t v]; ``answers`` (this text's, the other's) make
    it their logit difference.
    ``resume``: a file that keeps finished effects, from which the same call goes on.
    """
    subject, found = subject_of(lm), pair(lm, text, other, answers, metric)
    length, chosen = len(found.ids), _layers(subject, layers)
    if over not in ("residual", "attention", "mlp", "heads"):
        raise UserError(f'over is {over!r}: use "residual", "attention", "mlp" or "heads"')
    for position in positions or ():
        if not -length <= position < length:
            raise UserError(f"there is no position {position}: the texts have {length} tokens, from 0")
    at = None if positions is None else [position % length for position in positions]
    names = {layer: activation(subject, over, layer) for layer in chosen}
    donors = subject.run([found.other], list(names.values()))
    if over == "heads":
        everywhere = list(range(length)) if at is None else at
        cells = [Cell(i, head, everywhere) for i in chosen for head in range(len(donors[names[i]][0]))]
    else:
        at = differing(found.ids, found.other) if at is None else at
        cells = [Cell(i, None, [p]) for p in at for i in chosen]
    effects: list[float] = []
    batches = _batches(cells, length)
    rows = found.rows(resume, "patching", over=over, positions=at, layers=chosen)
    for n, some in enumerate(batches):

        def read(some: Sequence[Cell] = some) -> list[float]:
            edit = _patched(some, names, donors)
            logits = subject.run([found.ids] * len(some), ["logits"], edit)["logits"]
            return [found.recovered(float(found.metric(row))) for row in logits]

        effects += rows.of(n, read)
        progress("patching", n + 1, len(batches))
    if over == "heads":
        values = _by_head(cells, effects, chosen)
        axes: dict[str, Sequence[Any]] = {"layer": chosen, "head": range(values.shape[1])}
    else:
        token = subject.trace([found.ids], ["embed"])[0].tokens
        axes = {"position": [f"{p} {token[p]}" for p in at or ()], "layer": chosen}
        values = np.array(effects).reshape(-1, len(chosen))
    return Result(values, axes, f"patching over {over}", found.facts | {"positions": at})


def _layers(subject: Subject, asked: Sequence[int] | None) -> list[int]:
    """The layers asked for, negative ones counted from the last; all if None."""
    count = len(subject.model.blocks)
    for layer in () if asked is None else asked:
        if not -count <= layer < count:
            raise UserError(f"there is no layer {layer}: this model's layers are 0 to {count - 1}")
    if asked is not None and not len(asked):
        raise UserError("layers is empty: name at least one, or leave it out for all")
    return list(range(count)) if asked is None else list(dict.fromkeys(layer % count for layer in asked))


class Cell(NamedTuple):
    """What is patched in one row of a batch: a layer's activation, one head of it or all, at positions."""

    layer: int
    head: int | None
    at: Sequence[int]


def _batches(cells: Sequence[Cell], length: int) -> list[Sequence[Cell]]:
    """The cells that are read together: a row each, of any layers."""
    count = max(1, min(ROWS, TOKENS // length))
    return [cells[start : start + count] for start in range(0, len(cells), count)]


def _patched(
    cells: Sequence[Cell], names: Mapping[int, str], donors: Mapping[str, Tensor]
) -> dict[str, Listener]:
    """Row i of the batch gets the donor's activation in cell i."""

    def patched(layer: int, value: Tensor) -> Tensor:
        changed, donor = value.clone(), donors[names[layer]]
        for row, cell in zip(changed, cells, strict=True):
            if cell.layer == layer and cell.head is None:
                row[..., list(cell.at), :] = donor[0][..., list(cell.at), :]
            elif cell.layer == layer:
                row[cell.head, list(cell.at)] = donor[0, cell.head, list(cell.at)]
        return changed

    return {names[layer]: partial(patched, layer) for layer in sorted({cell.layer for cell in cells})}


def _by_head(cells: Sequence[Cell], effects: Sequence[float], layers: Sequence[int]) -> np.ndarray:
    """The effects of cells of one head each as an array [layer head]; NaN where a layer has fewer heads."""
    values = np.full((len(layers), 1 + max(cell.head or 0 for cell in cells)), np.nan)
    for cell, effect in zip(cells, effects, strict=True):
        values[layers.index(cell.layer), cell.head or 0] = effect
    return values


def path_patching(
    lm: Any,
    text: Any,
    other: Any,
    receivers: Sequence[tuple[str, int | None]] = (),
    *,
    answers: Answers | None = None,
    metric: Metric | None = None,
    layers: Sequence[int] | None = None,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> Result:
    """The effect [layer head] of each head of ``other`` by its direct paths alone to ``receivers``, 0 to 1.

    All other heads keep this text's outputs; MLPs between are computed anew. ``receivers``: activations and a
    head of each, such as ("blocks.9.attention.q", 3); none: the logits. Heads of all ``layers``, or of some.
    ``resume``: a file that keeps finished effects, from which the same call goes on.
    """
    subject, found = subject_of(lm), pair(lm, text, other, answers, metric)
    chosen = _layers(subject, layers)
    zs = {layer: activation(subject, "heads", layer) for layer in range(len(subject.model.blocks))}
    kept = [name for name, _ in receivers] or ["logits"]
    ours, theirs = (subject.run([ids], list(zs.values())) for ids in (found.ids, found.other))
    everywhere = range(len(found.ids))
    cells = [Cell(i, head, everywhere) for i in chosen for head in range(len(ours[zs[i]][0]))]
    effects: list[float] = []
    batches = _batches(cells, len(found.ids))
    rows = found.rows(resume, "path patching", receivers=list(receivers), layers=chosen)
    frozen: dict[str, Listener] = {z: lambda value, own=ours[z]: own.expand_as(value) for z in zs.values()}
    for n, some in enumerate(batches):

        def read(some: Sequence[Cell] = some) -> list[float]:
            texts = [found.ids] * len(some)
            seen = subject.run(texts, kept, [frozen, _patched(some, zs, theirs)])
            if receivers:
                received = [{name: _received(seen[name], head)} for name, head in receivers]
                seen = subject.run(texts, ["logits"], received)
            return [found.recovered(float(found.metric(row))) for row in seen["logits"]]

        effects += rows.of(n, read)
        progress("path patching", n + 1, len(batches))
    to = (
        ", ".join(name if head is None else f"head {head} of {name}" for name, head in receivers)
        or "the logits"
    )
    values = _by_head(cells, effects, chosen)
    axes = {"layer": chosen, "head": range(values.shape[1])}
    return Result(values, axes, f"paths to {to}", found.facts)


def _received(value: Tensor, head: int | None) -> Listener:
    def change(now: Tensor) -> Tensor:
        if head is None:
            return value
        changed = now.clone()
        changed[:, head] = value[:, head]
        return changed

    return change


def head_effects(lm: Any, text: Any, token: str | int, progress: Progress = silent) -> Result:
    """By how much a token's logit falls [layer head] when each head alone is ablated.

    Unlike attribution this counts what later layers make of the head. One pass a layer, a row a head.
    """
    subject = subject_of(lm)
    ids, id = subject.encode(text), token_id(lm, token)
    usual = subject.run([ids], ["logits"])["logits"][0, -1, id]
    counts = [output_heads(block.attention) for block in subject.model.config.blocks]
    values = np.full((len(counts), max(counts)), np.nan)
    for layer, heads in enumerate(counts):
        edit = {activation(subject, "heads", layer): _without_own_head}
        logits = subject.run([ids] * heads, ["logits"], edit)["logits"]
        values[layer, :heads] = (usual - logits[:, -1, id]).cpu().numpy()
        progress("ablating heads", layer + 1, len(counts))
    return Result(
        values, {"layer": range(len(counts)), "head": range(max(counts))}, "ablated heads", {"token": token}
    )


def _without_own_head(heads: Float[Tensor, "b h t v"]) -> Float[Tensor, "b h t v"]:
    """Row i of the batch loses head i."""
    changed, each = heads.clone(), torch.arange(len(heads), device=heads.device)
    changed[each, each] = 0
    return changed
