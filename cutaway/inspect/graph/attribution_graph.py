"""An attribution graph: nodes, effects of each on each, influence on the logits, and what pruning keeps.

    B = (I - A)^-1 - I        A: each row of the matrix of effects, absolute, over its sum

``A`` says which part of what a node reads each other node wrote, ``B`` the same over all paths. A node's
influence is its column of B, weighed by the logits' probabilities (Ameisen et al., "Circuit Tracing", 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from cutaway.errors import UserError

Kind = Literal["embedding", "head", "mlp", "neuron", "feature", "error", "logit"]
NODES, EDGES = 0.8, 0.98  # of the influence, that pruning keeps


class Node(NamedTuple):
    """A part of the model at a token: ``index`` is the head, neuron, feature, or the token's id.

    ``value`` is its activation: what the effects of other nodes on it and its ``constant`` sum to. That of an
    MLP or a head is the norm of what it wrote. ``expanded``: whether these effects were computed.
    ``probability`` is that of a logit's token.
    """

    kind: Kind
    layer: int
    position: int
    index: int
    value: float = 0.0
    constant: float = 0.0
    expanded: bool = False
    label: str = ""
    probability: float = 0.0

    @property
    def id(self) -> str:
        """A name of its own, in Neuronpedia's form: layer, part and position."""
        part = {"head": f"h{self.index}", "mlp": "mlp", "neuron": f"n{self.index}", "error": "-1"}
        layer = "E" if self.kind == "embedding" else self.layer
        return f"{layer}_{part.get(self.kind, self.index)}_{self.position}"

    @property
    def name(self) -> str:
        """The node's name for readers."""
        if self.label:
            return self.label
        words = {"head": f"head {self.layer}.{self.index}", "mlp": f"MLP {self.layer}"}
        words |= {"neuron": f"neuron {self.layer}.{self.index}", "error": f"error {self.layer}"}
        return words.get(self.kind, f"{self.kind} {self.layer}.{self.index}")


@runtime_checkable
class Source(Protocol):
    """What the nodes of a graph wrote: ``written`` [s d], as the residual stream gets it."""

    written: np.ndarray

    def sites(self, n: int) -> list[tuple[str, int | None, np.ndarray]]:
        """The activation, head and row in which a node is written, before norms that follow."""
        ...

    def attends(self, n: int) -> np.ndarray | None:
        """The attention weights [t] of a head on the tokens; None of other nodes."""
        ...


@dataclass(frozen=True, eq=False)
class Graph:
    """``effects[t, s]``: what node s adds to node t's value, directly. Nodes are in the order of computation.

    ``tokens`` and ``ids`` are the prompt's; ``weights`` [n] are the logits', which sum to 1.
    ``influence`` [n] is each node's, from 0 to 1 and more. ``groups`` are named lists of nodes' ids.
    ``source`` has what nodes wrote, by their numbers there, ``sources`` [n].
    """

    prompt: str
    model: str
    tokens: Sequence[str]
    nodes: Sequence[Node]
    effects: np.ndarray
    weights: np.ndarray
    influence: np.ndarray
    ids: Sequence[int] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    groups: Sequence[tuple[str, Sequence[str]]] = ()
    source: Source | None = None
    sources: np.ndarray = field(default_factory=lambda: np.zeros(0, int))

    @property
    def logits(self) -> list[int]:
        """The numbers of the logits' nodes."""
        return [n for n, node in enumerate(self.nodes) if node.kind == "logit"]

    def number(self, id: str) -> int:
        """The number of a node by its id."""
        for n, node in enumerate(self.nodes):
            if node.id == id:
                return n
        raise UserError(f"there is no node {id!r:.60} in this graph: it has {len(self.nodes)} others")

    def edges(self) -> list[tuple[int, int, float]]:
        """(source, target, effect) of each edge."""
        targets, sources = np.nonzero(self.effects)
        weights = self.effects[targets, sources].tolist()
        return list(zip(sources.tolist(), targets.tolist(), weights, strict=True))

    def pruned(self, nodes: float = NODES, edges: float = EDGES) -> Graph:
        """The nodes that have so much of the influence on the logits, then the edges that have.

        All logits stay, the embeddings of all tokens, and no node without a way to the logits.
        """
        for name, part in (("nodes", nodes), ("edges", edges)):
            if not 0 < part <= 1:
                raise UserError(f"{name} is {part}: give a part of the influence, above 0 and at most 1")
        ends = np.array([node.kind in ("logit", "embedding") for node in self.nodes])
        kept = (self.influence >= _threshold(self.influence, nodes)) | ends
        effects = np.where(np.outer(kept, kept), self.effects, np.float32(0))
        parts = normalised(effects)
        scores = parts * (influences(parts, self.weights) + self.weights)[:, None]
        effects = np.where(scores >= _threshold(scores, edges), effects, np.float32(0))
        while True:
            reaches = (effects != 0).any(0) | ends
            if not (kept & ~reaches).any():
                break
            kept &= reaches
            effects = np.where(np.outer(kept, kept), effects, np.float32(0))
        return self.of(np.flatnonzero(kept), effects)

    def of(self, chosen: np.ndarray, effects: np.ndarray) -> Graph:
        """The graph of some of its nodes, with these effects of all nodes."""
        return replace(
            self,
            nodes=[self.nodes[n] for n in chosen],
            effects=effects[np.ix_(chosen, chosen)],
            weights=self.weights[chosen],
            influence=self.influence[chosen],
            sources=self.sources[chosen],
        )


def normalised(effects: np.ndarray, totals: np.ndarray | None = None) -> np.ndarray:
    """Each row's absolute effects as parts of ``totals`` [n], or of their sum; 0 of a row without any."""
    size = np.abs(effects)
    total = size.sum(-1) if totals is None else totals
    return np.divide(size, total[:, None], out=np.zeros_like(size), where=total[:, None] > 0)


def influences(parts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 [n]: ``weights`` [n] times B = (I - A)^-1 - I, of A in the order of computation."""
    found = np.zeros(len(parts))
    for target in range(len(parts) - 1, -1, -1):
        if by := found[target] + weights[target]:
            found += by * parts[target]
    return found


def scores(
    parts: np.ndarray, by: np.ndarray, reached: np.ndarray, inputs: np.ndarray, ends: np.ndarray
) -> dict[str, float]:
    """How much of the influence a graph explains: ``inputs`` [s] are embeddings, ``ends`` what is not.

    ``replacement``: of the influence [s] ``reached`` by both, that of embeddings. ``completeness``: the part
    of what targets read, rows [n s] of ``parts``, that is no end, weighed by their influence ``by`` [n].
    """
    of = float(reached[inputs | ends].sum())
    return {
        "replacement": float(reached[inputs].sum()) / of if of else 0.0,
        "completeness": float(((1 - parts[:, ends].sum(-1)) * by).sum() / by.sum()),
    }


def _threshold(values: np.ndarray, part: float) -> float:
    """The smallest of the largest values that have this part of the sum."""
    found = np.sort(values, axis=None)[::-1]
    found = found[found > 0]
    if not len(found):
        return np.inf
    total = np.cumsum(found, dtype=np.float64)
    return float(found[min(int(np.searchsorted(total, part * total[-1])), len(found) - 1)])
