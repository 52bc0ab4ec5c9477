"""Makes an attribution graph of a text: from the logits downwards, each node in the order of its influence.

    graph = attribution_graph(lm, "The capital of France is")
    graph.pruned().edges()

A layer's nodes are expanded when all later ones are, so a node's influence is known before its row is
computed. Nodes with less than ``least`` are not expanded, which the graph's scores count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from cutaway.bounds import is_finite
from cutaway.errors import UserError
from cutaway.inspect.arrays import softmax
from cutaway.inspect.graph import frozen
from cutaway.inspect.graph.attribution_graph import Graph, Node, normalised, scores
from cutaway.inspect.graph.features import Features
from cutaway.inspect.graph.parts import Parts, Reads, Rows
from cutaway.inspect.instrumented import Instrumented, Values, head_table
from cutaway.inspect.pairs import token_id, token_text, vocabulary_of
from cutaway.inspect.sae import SAE
from cutaway.inspect.subject import Subject, subject_of
from cutaway.store.files import Progress, silent

LEAST = 2e-4  # the influence of a node that is expanded
NEURONS = 40  # that are nodes of their own
LIKELY, MOST = 0.95, 10  # logits: the likeliest up to this probability, and so many at most
LARGEST = 1 << 28  # numbers of the matrix of effects: one GB


class Logits(NamedTuple):
    """The tokens whose logits are nodes, their probabilities, and what reads them at the last token."""

    ids: list[int]
    probabilities: np.ndarray
    directions: np.ndarray  # [n d] of the residual stream
    values: np.ndarray
    constants: np.ndarray


@runtime_checkable
class Source(Protocol):
    """Nodes of a text in the order of computation, and the rows of those that are expanded."""

    nodes: list[Node]
    groups: list[tuple[str, int, slice]]

    def reads(self, kind: str, layer: int, chosen: np.ndarray) -> Reads: ...

    def rows(self, reads: Reads) -> Rows: ...


def attribution_graph(
    lm: Any,
    text: Any,
    target: str | int | None = None,
    *,
    features: Sequence[SAE] = (),
    neurons: int | None = None,
    least: float = LEAST,
    progress: Progress = silent,
) -> Graph:
    """The graph of a text's next token: what embeddings, heads, MLPs and neurons add to each other's values.

    ``target``: the token whose logit is the only one; else the likeliest up to 95%. ``features``:
    transcoders (``sae.load_set``), whose features take the place of heads and of the MLPs that they replace.
    Without them ``neurons`` (None: 40) with the most influence are nodes beside their MLPs. Raises UserError
    for a model that is no sum of such parts, and for a text that is too long.
    """
    if not is_finite(least) or not 0 < least < 1:
        raise UserError(f"least is {least}: give a part of the influence, above 0 and below 1")
    if neurons is not None and (features or neurons < 0):
        why = "a graph of features has none" if features else "give 0 or more"
        raise UserError(f"neurons is {neurons}: {why}")
    subject = subject_of(lm)
    frozen.check(subject.config)
    ids = subject.encode(text)
    engine, seen = _seen(subject, ids)
    layers = frozen.layers(engine, seen)
    logits = _logits(subject, engine, seen, None if target is None else token_id(lm, target))
    parts: Any = Features(layers, ids, features) if features else Parts(layers, ids)
    _check_size(len(parts.nodes), len(ids))
    made = _traced(parts, len(ids), logits, least, progress)
    count = NEURONS if neurons is None else neurons
    if count and not features:
        parts = Parts(layers, ids, parts.strongest_neurons(made.counted(), count))
        made = _traced(parts, len(ids), logits, least, progress)
    return _graph(subject, ids, parts, logits, made, engine.name)


def _seen(subject: Subject, ids: Sequence[int]) -> tuple[Instrumented, Values]:
    names = frozen.names(subject.config)
    engine, given, _ = subject.asked([ids], names, ())
    (seen,) = engine.values([ids], names, given)
    return engine, seen


def _logits(subject: Subject, engine: Instrumented, seen: Values, target: int | None) -> Logits:
    """The logits that are nodes, each less the mean of all: only differences of logits count."""
    config, count = subject.config, vocabulary_of(subject)
    row = seen["logits"][-1, :count].astype(np.float64)
    probabilities = softmax(row)
    if target is None:
        order = np.argsort(-probabilities, kind="stable")[:MOST]
        likely = int(np.searchsorted(np.cumsum(probabilities[order]), LIKELY)) + 1
        ids = order[: min(likely, len(order))].tolist()
    elif not 0 <= target < count:
        raise UserError(f"token {target} is not in this model's vocabulary of {count:,}")
    else:
        ids = [target]
    table = head_table(engine)
    mean = np.zeros(config.width)
    for start in range(0, count, 8192):
        mean += table[start : min(start + 8192, count)].sum(0, dtype=np.float64)
    wanted = (table[np.array(ids)] - mean / count).astype(np.float32) * np.float32(config.logit_scale)
    stream = seen[f"blocks.{len(config.blocks) - 1}.out"][-1:]
    norm = frozen.FrozenNorm.of(engine, "norm", config.norm if config.last_norm else None, stream)
    constants = np.zeros(len(ids)) if norm.bias is None else (wanted @ norm.bias).astype(np.float64)
    for name in ("head.bias", "logits_bias"):
        if name in config.weights():
            bias = engine.weight(name)[:count].astype(np.float64)
            constants = constants + bias[ids] - bias.mean()
    plain = row if config.softcap is None else config.softcap * np.arctanh(row / config.softcap)
    weights = probabilities[ids] / probabilities[ids].sum()
    return Logits(ids, weights, norm.back(wanted), plain[ids] - plain.mean(), constants)


class Traced(NamedTuple):
    """Expanded targets, the logits last: their numbers, what they read, their rows, and all influence [s]."""

    numbers: list[int]
    reads: list[Reads]
    rows: list[Rows]
    influence: np.ndarray

    def counted(self) -> list[tuple[Reads, np.ndarray]]:
        """What targets read, and what each source's effect counts by [n s]: the influence of the target over
        its row's sum, with the effect's sign.
        """
        found, start = [], 0
        for reads, rows in zip(self.reads, self.rows, strict=True):
            numbers = self.numbers[start : start + len(rows.values)]
            by = self.influence[numbers] / np.maximum(np.abs(rows.effects).sum(-1), 1e-30)
            found.append((reads, np.sign(rows.effects) * by[:, None].astype(np.float32)))
            start += len(numbers)
        return found

    def facts(self, nodes: Sequence[Node]) -> dict[str, float]:
        """The scores, and ``rest``: the largest part of what a target reads that its effects miss."""
        missed = [
            np.abs(one.values - one.constants - one.effects.sum(-1, dtype=np.float64))
            / np.maximum(np.abs(one.effects).sum(-1), 1e-30)
            for one in self.rows
        ]
        count = len(nodes)
        inputs = np.array([node.kind == "embedding" for node in nodes])
        ends = ~inputs & ~np.isin(np.arange(count), self.numbers)
        parts = np.concatenate([normalised(one.effects) for one in self.rows])
        found = scores(parts, self.influence[self.numbers], self.influence[:count], inputs, ends)
        return found | {"rest": float(np.concatenate(missed).max())}


def _traced(parts: Source, tokens: int, logits: Logits, least: float, progress: Progress) -> Traced:
    """Expands nodes from the logits downwards."""
    count = len(parts.nodes)
    weights = np.zeros((len(logits.ids), tokens), np.float32)
    weights[:, -1] = 1
    reads = [Reads(logits.directions, weights, logits.values, logits.constants, np.inf)]
    rows = [parts.rows(reads[0])]
    numbers = list(range(count, count + len(logits.ids)))
    influence = np.concatenate([np.zeros(count), logits.probabilities])
    influence[:count] = logits.probabilities @ normalised(rows[0].effects)
    for done, (kind, layer, group) in enumerate(reversed(parts.groups)):
        progress("tracing", done, len(parts.groups))
        chosen = group.start + np.flatnonzero(influence[group] >= least)
        if kind in ("embedding", "error") or not len(chosen):
            continue
        if (len(numbers) + len(chosen)) * count > LARGEST:
            raise UserError(
                f"this graph has more than {LARGEST:,} effects: give a shorter text, or a larger least"
            )
        reads.append(parts.reads(kind, layer, chosen))
        rows.append(parts.rows(reads[-1]))
        numbers += chosen.tolist()
        influence[:count] += influence[chosen] @ normalised(rows[-1].effects)
    progress("tracing", len(parts.groups), len(parts.groups))
    return Traced(numbers, reads, rows, influence)


def _graph(
    subject: Subject, ids: Sequence[int], parts: Source, logits: Logits, made: Traced, engine: str
) -> Graph:
    """The embeddings and all expanded nodes, in the order of computation.

    Effects of sources that were not expanded are left out; the scores count them.
    """
    count, last = len(parts.nodes), len(ids) - 1
    every = [*parts.nodes, *(Node("logit", len(subject.config.blocks), last, id) for id in logits.ids)]
    inputs = [n for n, node in enumerate(parts.nodes) if node.kind == "embedding"]
    ends = [n for n, node in enumerate(parts.nodes) if node.kind == "error"]
    numbers = np.array(sorted({*inputs, *ends, *made.numbers}))
    place = {n: at for at, n in enumerate(numbers.tolist())}
    effects = np.zeros((len(numbers), len(numbers)), np.float32)
    before, start = numbers[numbers < count], 0
    for rows in made.rows:
        for row, value, constant in zip(*rows, strict=True):
            n = made.numbers[start]
            effects[place[n], : len(before)] = row[before]
            every[n] = every[n]._replace(value=float(value), constant=float(constant), expanded=True)
            start += 1
    nodes = [every[n] for n in numbers]
    labelled = [
        one._replace(label=repr(token_text(subject, one.index)))
        if one.kind in ("logit", "embedding")
        else one
        for one in nodes
    ]
    weights = np.zeros(len(numbers))
    weights[len(before) :] = logits.probabilities
    tokens = [token_text(subject, id) for id in ids]
    found = Graph("".join(tokens), "", tokens, labelled, effects, weights, made.influence[numbers] - weights)
    return replace(found, facts={"engine": engine} | made.facts(parts.nodes))


def _check_size(nodes: int, tokens: int) -> None:
    if nodes * tokens > LARGEST:
        raise UserError(f"a graph of {tokens} tokens has {nodes:,} nodes: give a shorter text")
