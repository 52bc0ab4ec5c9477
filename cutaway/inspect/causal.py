"""Causal effects: how a metric of the answer changes when a part of the model has another text's activation.

    patching(lm, text, other, over="heads", answers=(" Paris", " Rome"))
    path_patching(lm, text, other, answers=(" Paris", " Rome"))

Where a patch moves the answer to the other text's, the patched activation holds the difference of the texts
(2202.05262 calls it causal tracing; 2309.16042 compares metrics). Path patching lets a head act on its
receivers alone, all other heads as they are (2211.00593, 2304.05969). ``lm`` is a loaded model, edited or
not, or a ``Subject``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import UserError
from cutaway.hooks import Listener
from cutaway.inspect.inputs import output_heads
from cutaway.inspect.result import Result
from cutaway.inspect.trace import Metric, Subject, subject_of
from cutaway.layers.config import MoE
from cutaway.shapes import Float
from cutaway.store.files import Progress, silent

Over = Literal["residual", "attention", "mlp", "heads"]
Answers = tuple[str | int, str | int]
ROWS = 32  # texts in one pass


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
    progress: Progress = silent,
) -> Result:
    """Patches one activation of ``other`` into ``text`` at a time: how far the metric moves, 0 to 1.

    ``over`` the "residual" stream, "attention" or "mlp" outputs: [position layer], at ``positions`` (those
    that differ and the last, if None). Over "heads": [layer head], each at all ``positions`` at once (None:
    all of the text's).
    ``metric`` takes logits [t v]; ``answers`` (this text's, the other's) make it their logit difference.
    """
    subject, found = subject_of(lm), pair(lm, text, other, answers, metric)
    length, layers = len(found.ids), len(subject.model.blocks)
    if over not in ("residual", "attention", "mlp", "heads"):
        raise UserError(f'over is {over!r}: use "residual", "attention", "mlp" or "heads"')
    for position in positions or ():
        if not -length <= position < length:
            raise UserError(f"there is no position {position}: the texts have {length} tokens, from 0")
    at = None if positions is None else [position % length for position in positions]
    names = [activation(subject, over, layer) for layer in range(layers)]
    donors = subject.run([found.other], names)
    columns: list[list[float]] = []
    if over == "heads":
        everywhere = list(range(length)) if at is None else at
        for i, name in enumerate(names):
            heads = range(donors[name].shape[1])
            cells = [(head, everywhere) for head in heads]
            columns.append(_effects(subject, found, name, cells, donors[name]))
            progress("patching", i + 1, layers)
        axes: dict[str, Sequence[Any]] = {"layer": range(layers), "head": range(max(map(len, columns)))}
        values = np.full((layers, len(axes["head"])), np.nan)
        for row, column in zip(values, columns, strict=True):
            row[: len(column)] = column
    else:
        at = differing(found.ids, found.other) if at is None else at
        for i, name in enumerate(names):
            columns.append(_effects(subject, found, name, [(None, [p]) for p in at], donors[name]))
            progress("patching", i + 1, layers)
        token = subject.trace([found.ids], ["embed"])[0].tokens
        axes = {"position": [f"{p} {token[p]}" for p in at], "layer": range(layers)}
        values = np.array(columns).T
    return Result(values, axes, f"patching over {over}", found.facts | {"positions": at})


Cell = tuple[int | None, Sequence[int]]  # a head or None, and positions


def _effects(subject: Subject, found: Pair, name: str, cells: Sequence[Cell], donor: Tensor) -> list[float]:
    """How far the metric moves, for each cell of one activation: a row of a batch each."""
    effects: list[float] = []
    for start in range(0, len(cells), ROWS):
        some = cells[start : start + ROWS]
        logits = subject.run([found.ids] * len(some), ["logits"], {name: _patched(some, donor)})["logits"]
        effects += [found.recovered(float(found.metric(row))) for row in logits]
    return effects


def _patched(cells: Sequence[Cell], donor: Tensor) -> Listener:
    """Row i of the batch gets the donor's activation in cell i."""

    def change(value: Tensor) -> Tensor:
        changed = value.clone()
        for row, (head, at) in zip(changed, cells, strict=True):
            if head is None:
                row[..., list(at), :] = donor[0][..., list(at), :]
            else:
                row[head, list(at)] = donor[0, head, list(at)]
        return changed

    return change


def path_patching(
    lm: Any,
    text: Any,
    other: Any,
    receivers: Sequence[tuple[str, int | None]] = (),
    *,
    answers: Answers | None = None,
    metric: Metric | None = None,
    progress: Progress = silent,
) -> Result:
    """The effect [layer head] of each head of ``other`` by its direct paths alone to ``receivers``, 0 to 1.

    All other heads keep this text's outputs; MLPs between are computed anew. ``receivers``: activations and a
    head of each, such as ("blocks.9.attention.q", 3); none: the logits.
    """
    subject, found = subject_of(lm), pair(lm, text, other, answers, metric)
    layers = len(subject.model.blocks)
    zs = [activation(subject, "heads", layer) for layer in range(layers)]
    kept = [name for name, _ in receivers] or ["logits"]
    ours, theirs = subject.run([found.ids], zs), subject.run([found.other], zs)
    widest = max(output_heads(block.attention) for block in subject.model.config.blocks)
    values = np.zeros((layers, widest))
    for layer, sender in enumerate(zs):
        heads = ours[sender].shape[1]
        frozen: dict[str, Listener] = {
            name: lambda value, own=ours[name]: own.expand_as(value) for name in zs if name != sender
        }
        cells = [(head, range(len(found.ids))) for head in range(heads)]
        sent = _sent(ours[sender], _patched(cells, theirs[sender]))
        rows = [found.ids] * heads
        seen = subject.run(rows, kept, frozen | {sender: sent})
        if receivers:
            received = {name: _received(seen[name], head) for name, head in receivers}
            seen = subject.run(rows, ["logits"], [{name: change} for name, change in received.items()])
        values[layer, :heads] = [found.recovered(float(found.metric(row))) for row in seen["logits"]]
        progress("path patching", layer + 1, layers)
    to = (
        ", ".join(name if head is None else f"head {head} of {name}" for name, head in receivers)
        or "the logits"
    )
    return Result(values, {"layer": range(layers), "head": range(widest)}, f"paths to {to}", found.facts)


def _sent(own: Tensor, patched: Callable[[Tensor], Tensor | None]) -> Listener:
    return lambda value: patched(own.expand_as(value))


def _received(value: Tensor, head: int | None) -> Listener:
    def change(now: Tensor) -> Tensor:
        if head is None:
            return value
        changed = now.clone()
        changed[:, head] = value[:, head]
        return changed

    return change


def head_effects(lm: Any, text: Any, token: str | int) -> Result:
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
    return Result(
        values, {"layer": range(len(counts)), "head": range(max(counts))}, "ablated heads", {"token": token}
    )


def _without_own_head(heads: Float[Tensor, "b h t v"]) -> Float[Tensor, "b h t v"]:
    """Row i of the batch loses head i."""
    changed, each = heads.clone(), torch.arange(len(heads), device=heads.device)
    changed[each, each] = 0
    return changed
