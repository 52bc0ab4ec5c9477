"""Clamp nodes of a graph to a multiple of their value: the graph's prediction, and what the model does.

The graph is linear: a node's change is the sum over what it reads, of effects times relative changes. The
change of a clamped node passes on along all paths, which other clamped nodes stop. The model is run with a
head's output set, or the contribution of an MLP, a neuron, a feature or an error changed by as much, and all
else computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cutaway.bounds import is_finite
from cutaway.errors import UserError
from cutaway.inspect.edits import Add, Edit, Scale
from cutaway.inspect.graph.attribution_graph import Graph
from cutaway.inspect.graph.logits import centred
from cutaway.inspect.pairs import vocabulary_of
from cutaway.inspect.subject import subject_of
from cutaway.store.files import Progress, silent

AT_ONCE = 64  # clamped texts read together
CLAMPED = ("head", "mlp", "neuron", "feature", "error")
Clamps = Mapping[int, float]  # of the graph's nodes by number, the multiple of its value


def passed_on(graph: Graph) -> np.ndarray:
    """float64 [n n]: the change of each node for a change of 1 of each other, directly."""
    values = np.array([node.value for node in graph.nodes])
    return graph.effects / np.where(values == 0, np.inf, values)


def reduced(direct: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The changes that some nodes pass on to each other, by paths through the others too."""
    out = np.setdiff1d(np.arange(len(direct)), kept)
    through = direct[np.ix_(out, kept)].copy()
    inside = direct[np.ix_(out, out)]
    for n in range(len(out)):
        through[n] += inside[n, :n] @ through[:n]
    return direct[np.ix_(kept, kept)] + direct[np.ix_(kept, out)] @ through


def predicted(graph: Graph, clamps: Clamps, direct: np.ndarray | None = None) -> np.ndarray:
    """float64 [n]: the change of each node's value when some are clamped. ``direct``: ``passed_on``."""
    _check(graph, clamps)
    direct = passed_on(graph) if direct is None else direct
    changes = np.zeros(len(graph.nodes))
    for n, node in enumerate(graph.nodes):
        changes[n] = (clamps[n] - 1) * node.value if n in clamps else direct[n, :n] @ changes[:n]
    return changes


def total_effects(graph: Graph) -> np.ndarray:
    """float64 [logits n]: the predicted change of each logit when a node alone is clamped to 0."""
    direct, count = passed_on(graph), len(graph.nodes)
    by = np.zeros((len(graph.logits), count))
    by[np.arange(len(graph.logits)), graph.logits] = 1
    for n in range(count - 1, -1, -1):
        by += by[:, n, None] * direct[n]
    values = np.array([node.value for node in graph.nodes])
    by[np.arange(len(graph.logits)), graph.logits] = 0
    return -by * values


def measured(lm: Any, graph: Graph, clamps: Sequence[Clamps], progress: Progress = silent) -> np.ndarray:
    """float64 [clamps logits]: the true change of each logit, less the mean of all, under each clamp."""
    subject, count = subject_of(lm), vocabulary_of(subject_of(lm))
    chosen = [graph.nodes[n].index for n in graph.logits]
    for one in clamps:
        _check(graph, one)
    edits = [[edit for n, by in one.items() for edit in _edits(graph, n, by)] for one in clamps]

    def logits(given: Sequence[Sequence[Edit]]) -> list[np.ndarray]:
        read = subject.values([graph.ids] * len(given), ["logits"], each=given, logits_at=[-1])
        return [centred(subject.config, one["logits"][0, :count])[chosen] for one in read]

    (base,) = logits([[]])
    found = np.zeros((len(clamps), len(chosen)))
    for start in range(0, len(clamps), AT_ONCE):
        some = logits(edits[start : start + AT_ONCE])
        found[start : start + len(some)] = np.array(some) - base
        progress("checking", start + len(some), len(clamps))
    return found


def _check(graph: Graph, clamps: Clamps) -> None:
    for n, by in clamps.items():
        if not 0 <= n < len(graph.nodes):
            raise UserError(f"there is no node {n}: the graph's are 0 to {len(graph.nodes) - 1}")
        if not is_finite(by):
            raise UserError(f"node {n} is clamped to {by} times its value: give a finite number")


def _edits(graph: Graph, n: int, by: float) -> list[Edit]:
    """The edits that clamp a node to ``by`` times its value."""
    node = graph.nodes[n]
    if node.kind not in CLAMPED or graph.source is None:
        raise UserError(
            f"{node.name} cannot be clamped: only a {', '.join(CLAMPED[:-1])} or {CLAMPED[-1]} can"
        )
    found: list[Edit] = []
    for name, head, row in graph.source.sites(int(graph.sources[n])):
        where: dict[str, Any] = {"name": name, "head": head, "positions": [node.position]}
        found += [Scale(**where, strength=0.0)] if head is not None else []
        found.append(Add(**where, vector=row.tolist(), strength=by if head is not None else by - 1))
    return found
