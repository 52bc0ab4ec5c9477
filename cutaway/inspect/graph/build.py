"""Makes an attribution graph of a text: from the logits downwards, each node in the order of its influence.

    graph = attribution_graph(lm, "The capital of France is")
    graph.pruned().edges()

A layer's nodes are expanded when all later ones are, so a node's influence is known before its row is
computed. Nodes with less than ``least`` are not expanded, which the graph's scores count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from cutaway.bounds import is_finite
from cutaway.errors import UserError
from cutaway.inspect.graph import frozen
from cutaway.inspect.graph.attribution_graph import Graph, Node, Source, normalised, scores
from cutaway.inspect.graph.features import Features
from cutaway.inspect.graph.logits import Logits, read_logits, spaced
from cutaway.inspect.graph.parts import Parts, Reads, Rows
from cutaway.inspect.instrumented import Instrumented, Values
from cutaway.inspect.pairs import token_id, token_text
from cutaway.inspect.sae import SAE
from cutaway.inspect.subject import Subject, subject_of
from cutaway.model.config import Decoder
from cutaway.store.files import Progress, silent

LEAST = 2e-4  # the influence of a node that is expanded
NEURONS, MOST = 40, 1000  # neurons that are nodes of their own, and so many at most
LARGEST = 1 << 28  # numbers of the matrix of effects: one GB


@runtime_checkable
class Rowed(Source, Protocol):
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
    transcoders (``sae_folders.load_set``), whose features take the place of the MLPs that they replace.
    Without them ``neurons`` (None: 40) with the most influence are nodes beside their MLPs. Raises UserError
    for a model that is no sum of such parts, and for a text that is too long.
    """
    if not is_finite(least) or not 0 < least < 1:
        raise UserError(f"least is {least}: give a part of the influence, above 0 and below 1")
    if neurons is not None and (features or not 0 <= neurons <= MOST):
        why = "a graph of features has none" if features else f"give 0 to {MOST:,}"
        raise UserError(f"neurons is {neurons}: {why}")
    subject = subject_of(lm)
    frozen.check(subject.config)
    ids = subject.encode(text)
    _check_size(subject.config, len(ids))
    engine, seen = _seen(subject, ids)
    layers = frozen.layers(engine, seen)
    logits = read_logits(subject, engine, seen, None if target is None else token_id(lm, target))
    parts: Any = Features(layers, ids, features) if features else Parts(layers, ids)
    made = _traced(parts, len(ids), logits, least, progress)
    count = NEURONS if neurons is None else neurons
    if count and not features:
        parts = Parts(layers, ids, parts.strongest_neurons(made.counted(), count))
        made = _traced(parts, len(ids), logits, least, progress)
    facts = {"least": least, "likelier": spaced(subject, seen, target)}
    return _graph(subject, ids, parts, logits, made, {"engine": engine.name} | facts)


def _seen(subject: Subject, ids: Sequence[int]) -> tuple[Instrumented, Values]:
    names = frozen.names(subject.config)
    engine, given, _ = subject.asked([ids], names, ())
    (seen,) = engine.values([ids], names, given)
    return engine, seen


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
        """The scores; ``rest``, the largest part of what a target reads that its effects miss; and how many
        nodes were not expanded (``left_out``), with the part of the influence that ends at them.
        """
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
        reached = self.influence[:count]
        left = ends & np.array([node.kind != "error" for node in nodes]) & (reached > 0)
        lost = float(reached[left].sum() / max(reached[inputs | ends].sum(), 1e-30))
        left_out = {"left_out": int(left.sum()), "left_out_influence": lost}
        return found | left_out | {"rest": float(np.concatenate(missed).max())}


def _traced(parts: Rowed, tokens: int, logits: Logits, least: float, progress: Progress) -> Traced:
    """Expands nodes from the logits downwards."""
    count = len(parts.nodes)
    weights = np.zeros((len(logits.ids), tokens), np.float32)
    weights[:, -1] = 1
    reads = [Reads(logits.directions, weights, logits.values, logits.constants, np.inf)]
    rows = [parts.rows(reads[0])]
    numbers = list(range(count, count + len(logits.ids)))
    influence = np.concatenate([np.zeros(count), logits.weights])
    influence[:count] = logits.weights @ normalised(rows[0].effects)
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
    subject: Subject, ids: Sequence[int], parts: Rowed, logits: Logits, made: Traced, facts: dict[str, Any]
) -> Graph:
    """The embeddings and all expanded nodes, in the order of computation.

    Effects of sources that were not expanded are left out; the scores count them.
    """
    count, last = len(parts.nodes), len(ids) - 1
    ends = zip(logits.ids, logits.probabilities.tolist(), strict=True)
    outputs = [Node("logit", len(subject.config.blocks), last, id, probability=p) for id, p in ends]
    every = [*parts.nodes, *outputs]
    inputs = [n for n, node in enumerate(parts.nodes) if node.kind == "embedding"]
    errors = [n for n, node in enumerate(parts.nodes) if node.kind == "error"]
    numbers = np.array(sorted({*inputs, *errors, *made.numbers}))
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
    norms = np.linalg.norm(parts.written[before], axis=-1)
    for at, one in enumerate(nodes):
        if one.kind in ("logit", "embedding"):
            one = one._replace(label=repr(token_text(subject, one.index)))
        nodes[at] = one if one.expanded else one._replace(value=float(norms[at]))
    weights = np.zeros(len(numbers))
    weights[len(before) :] = logits.weights
    tokens = [token_text(subject, id) for id in ids]
    influence = made.influence[numbers] - weights
    return Graph(
        "".join(tokens),
        *("", tokens, nodes, effects, weights, influence),
        ids=list(ids),
        facts=facts | made.facts(parts.nodes),
        source=parts,
        sources=np.where(numbers < count, numbers, -1),
    )


def _check_size(config: Decoder, tokens: int) -> None:
    """UserError for a text whose parts, at all tokens, are too many; before anything is read."""
    parts = tokens * (1 + sum(block.attention.heads + 1 for block in config.blocks))
    if parts * tokens > LARGEST:
        raise UserError(f"a graph of {tokens:,} tokens has {parts:,} nodes: give a shorter text")
