"""The graph's rows over a model's own parts: embeddings, heads, MLPs and single neurons.

Each part at a token wrote a vector. A row asks what a part read: of a head or an MLP along the direction of
what it wrote, of a neuron its activation, of a logit the logit less the mean of all. All of these are sums
over the vectors that earlier parts wrote, as the residual stream adds them (``frozen.py``), each by a direct
path: through no other head or MLP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from cutaway.inspect.graph.attribution_graph import Node
from cutaway.inspect.graph.frozen import FrozenLayer

Neuron = tuple[int, int, int]  # layer, position, neuron


class Reads(NamedTuple):
    """What targets read: the residual stream before ``time`` along directions [n d], by weights [n t] of its
    tokens. ``values`` [n] are the targets', ``constants`` [n] what biases add on the way.
    """

    directions: np.ndarray
    weights: np.ndarray
    values: np.ndarray
    constants: np.ndarray
    time: float


class Rows(NamedTuple):
    """The effects [n s] of all sources on some targets, and the targets' values and constants [n]."""

    effects: np.ndarray
    values: np.ndarray
    constants: np.ndarray


class Parts:
    """What embeddings, heads, MLPs and chosen neurons of a text wrote, and what each read of the others."""

    def __init__(
        self, layers: Sequence[FrozenLayer], ids: Sequence[int], neurons: Iterable[Neuron] = ()
    ) -> None:
        self.layers, self.ids = layers, ids
        self.nodes: list[Node] = []
        self.groups: list[tuple[str, int, slice]] = []  # the kind, layer and sources that are read together
        written = []
        embed = layers[0].seen["embed"]
        self._add("embedding", -1, [(p, id) for p, id in enumerate(ids)])
        written.append(embed)
        chosen, constants = sorted(set(neurons)), []
        self._single: dict[tuple[int, int], list[int]] = {}  # neurons that are nodes, by layer and position
        for i, p, n in chosen:
            self._single.setdefault((i, p), []).append(n)
        for i, layer in enumerate(layers):
            heads = layer.heads
            self._add("head", i, [(p, h) for h in range(len(heads)) for p in range(len(ids))])
            written.append(heads.reshape(-1, heads.shape[-1]))
            own = [(p, n) for at, p, n in chosen if at == i]
            at, which = [p for p, _ in own], [n for _, n in own]
            single = layer.written(at, which)
            rest = layer.mlp.copy()
            np.subtract.at(rest, at, single)
            self._add("neuron", i, own)
            self._add("mlp", i, [(p, -1) for p in range(len(ids))])
            written += [single, rest]
            constants.append(layer.attention_constant)
        self.written = np.concatenate(written).astype(np.float32)  # [s d]
        self.norms = np.linalg.norm(self.written.astype(np.float64), axis=-1)
        self.times = np.array([_time(node, layers) for node in self.nodes])
        self.positions = np.array([node.position for node in self.nodes])
        self.fixed = np.stack(constants)  # [layers t d]

    def _add(self, kind: str, layer: int, places: Sequence[tuple[int, int]]) -> None:
        start = len(self.nodes)
        self.nodes += [Node(kind, layer, p, index) for p, index in places]  # type: ignore[arg-type]
        if places:
            self.groups.append((kind, layer, slice(start, len(self.nodes))))

    def rows(self, reads: Reads) -> Rows:
        """The effects of all sources on what targets read, each by its direct path."""
        effects = (reads.directions @ self.written.T) * reads.weights[:, self.positions]
        effects[:, self.times >= reads.time] = 0
        constants = reads.constants.astype(np.float64)
        for layer, fixed in enumerate(self.fixed):
            if 2 * layer + 1 <= reads.time:
                constants = constants + ((reads.directions @ fixed.T) * reads.weights).sum(
                    -1, dtype=np.float64
                )
        return Rows(effects, reads.values.astype(np.float64), constants)

    def reads(self, kind: str, layer: int, chosen: np.ndarray) -> Reads:
        """The inputs of some sources of one group."""
        of, time = self.layers[layer], float(self.times[chosen[0]])
        at, index = self.positions[chosen], np.array([self.nodes[n].index for n in chosen])
        if kind == "head":
            return self._heads(of, chosen, at, index)
        if kind == "neuron":
            direction, constants = of.neuron_reads(at, index)
            return Reads(direction, self.at(at), of.hidden[at, index], constants, time)
        unit = self._units(chosen)
        by = of.mlp_after.back_at(unit, at) @ of.down.T  # [n f]
        for n, p in enumerate(at.tolist()):
            by[n, self._single.get((layer, p), [])] = 0
        direction, constants = of.neurons_read(at, by)
        constants = constants + np.einsum("nd,nd->n", unit, of.mlp_constant[at])
        return Reads(direction, self.at(at), self.norms[chosen], constants, time)

    def sites(self, n: int) -> list[tuple[str, int | None, np.ndarray]]:
        """The activation, head and row in which a source is written, before norms that follow."""
        node = self.nodes[n]
        of, p, path = self.layers[node.layer], node.position, f"blocks.{node.layer}"
        if node.kind == "head":
            return [(f"{path}.attention.z", node.index, of.seen[f"{path}.attention.z"][node.index, p])]
        which = [node.index] if node.kind == "neuron" else self._single.get((node.layer, p), [])
        wrote = of.hidden[p, which] @ of.outer[which]
        return [(of.mlp_site, None, wrote if node.kind == "neuron" else of.seen[of.mlp_site][p] - wrote)]

    def attends(self, n: int) -> np.ndarray | None:
        """The attention weights [t] of a head on the tokens; None of other sources."""
        node = self.nodes[n]
        return self.layers[node.layer].pattern[node.index, node.position] if node.kind == "head" else None

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Weights [n t] of one token each."""
        return (positions[:, None] == np.arange(len(self.ids))).astype(np.float32)

    def _units(self, chosen: np.ndarray) -> np.ndarray:
        """The directions [n d] of what sources wrote; of nothing, none."""
        return (self.written[chosen] / np.maximum(self.norms[chosen], 1e-30)[:, None]).astype(np.float32)

    def _heads(self, of: FrozenLayer, chosen: np.ndarray, at: np.ndarray, heads: np.ndarray) -> Reads:
        unit = np.zeros_like(of.heads)
        unit[heads, at] = self._units(chosen)
        read, constant = of.head_reads(unit)
        pattern = of.pattern[heads, at].astype(np.float32)  # [n s]
        constants = constant[heads, at] * pattern.sum(-1, dtype=np.float64)
        weights = pattern * of.key_sizes[:, 0]
        return Reads(read[heads, at], weights, self.norms[chosen], constants, float(self.times[chosen[0]]))

    def strongest_neurons(self, read: Sequence[tuple[Reads, np.ndarray]], count: int) -> list[Neuron]:
        """The neurons with the largest parts of their MLPs' influence. ``read``: what targets read, and by
        how much [n s] each source's effect counts, with its sign.
        """
        found: list[tuple[float, Neuron]] = []
        for kind, layer, group in self.groups:
            if kind != "mlp":
                continue
            of = self.layers[layer]
            asked = np.zeros_like(of.middle)
            for reads, by in read:
                if reads.time > self.times[group.start]:
                    asked += (by[:, group] * reads.weights).T @ reads.directions
            scores = np.abs(of.hidden * (of.mlp_after.back(asked) @ of.down.T))
            best = np.argpartition(-scores, min(count, scores.size) - 1, axis=None)[:count]
            for place in best:
                p, n = np.unravel_index(place, scores.shape)
                found.append((float(scores[p, n]), (layer, int(p), int(n))))
        best = sorted(found, key=lambda one: (-one[0], one[1]))[:count]
        return [neuron for score, neuron in best if score > 0]


def _time(node: Node, layers: Sequence[FrozenLayer]) -> float:
    """When a part is computed: an MLP in parallel reads what attention reads."""
    if node.kind == "embedding":
        return -1
    parallel = layers[node.layer].block.parallel
    return 2 * node.layer + (node.kind != "head" and not parallel)
