"""The graph's rows over features: MLPs replaced by a transcoder's features and what these leave, an error.

Attention is no node here: with its weights frozen it is a linear map, through which effects pass. An MLP
without a transcoder is one node, as in ``parts.py``. A row goes down through the layers once: its direction
at a layer's MLP gives the effects of what was written there, and attention passes it on to earlier tokens.

    effect of s on t = a_s * (W_dec[s], through the frozen layers between) . W_enc[t]

A feature's value is its pre-activation, which is also its activation where it is active.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.graph.attribution_graph import Node
from cutaway.inspect.graph.frozen import FrozenLayer
from cutaway.inspect.graph.parts import Reads, Rows
from cutaway.inspect.inputs import mlp_input
from cutaway.inspect.sae import SAE

AT_ONCE = 1 << 23  # numbers of directions that go down together


class Written(NamedTuple):
    """What active features of one layer write into an MLP's output: their numbers among the sources, their
    positions, their activations, and their directions [n d].
    """

    sources: np.ndarray
    positions: np.ndarray
    activations: np.ndarray
    directions: np.ndarray


class Features:
    """The embeddings, features, errors and other MLPs of a text, and what each read of the others."""

    def __init__(
        self, layers: Sequence[FrozenLayer], ids: Sequence[int], dictionaries: Sequence[SAE]
    ) -> None:
        self.layers, self.ids = layers, ids
        self.by_layer = _by_layer(layers, dictionaries)
        self.nodes: list[Node] = []
        self.groups: list[tuple[str, int, slice]] = []
        self.writes: list[list[Written]] = [[] for _ in layers]  # by the layer that is written
        self.fixed: list[np.ndarray] = []  # [t d]: the decoder's bias, in the MLP's output
        self.errors: list[np.ndarray] = []  # [t d]: of an MLP without a transcoder, all of it
        self.skips: dict[int, list[tuple[int, np.ndarray]]] = {}  # by the layer written: layer read, [d x]
        self.sinks: dict[int, np.ndarray] = {}  # [t 1] by layer
        self._add("embedding", -1, [(p, id) for p, id in enumerate(ids)])
        for i, layer in enumerate(layers):
            self._read(i, layer)
        self.written = self._directions()

    def _add(self, kind: str, layer: int, places: Sequence[tuple[int, int]]) -> np.ndarray:
        start = len(self.nodes)
        self.nodes += [Node(kind, layer, p, index) for p, index in places]  # type: ignore[arg-type]
        if places:
            self.groups.append((kind, layer, slice(start, len(self.nodes))))
        return np.arange(start, len(self.nodes))

    def _read(self, i: int, layer: FrozenLayer) -> None:
        """A layer's features and error, or its MLP."""
        of, every = self.by_layer.get(i), [(p, -1) for p in range(len(self.ids))]
        if of is None:
            self._add("mlp", i, every)
            self.errors.append(_true(layer, False))
            self.fixed.append(np.zeros_like(layer.middle))
            return
        x = layer.mlp_input
        activations = of.encode(x)
        activations[of.sinks(x)] = 0
        at, which = np.nonzero(activations)
        sources = self._add("feature", i, list(zip(at.tolist(), which.tolist(), strict=True)))
        for name in of.writes:
            writes = Written(sources, at, activations[at, which], of.decoder(name)[which])
            self.writes[_layer(name)].append(writes)
        self.sinks[i] = of.sinks(x)[:, None]
        left = _true(layer, _site(of) == "mlp_post_norm")
        fixed = np.zeros_like(left)
        for one in self.by_layer.values():
            if (own := f"blocks.{i}.{_site(of)}") not in one.writes or one.layer > i:
                continue
            fixed += np.where(self.sinks[one.layer], np.float32(0), one.parts(one.b_dec[None])[own])
            if one.W_skip is not None:
                by = one.parts(one.W_skip.T)[own]  # [x d]
                self.skips.setdefault(i, []).append((one.layer, by.T))
                left -= np.where(self.sinks[one.layer], np.float32(0), self.layers[one.layer].mlp_input @ by)
        left -= fixed
        for one in self.writes[i]:
            np.subtract.at(left, one.positions, one.activations[:, None] * one.directions)
        self._add("error", i, every)
        self.errors.append(left)
        self.fixed.append(fixed)

    def _directions(self) -> np.ndarray:
        """float32 [s d]: what each source adds to the residual stream where it is first written."""
        found = np.zeros((len(self.nodes), self.layers[0].middle.shape[-1]), np.float32)
        for kind, layer, group in self.groups:
            if kind == "embedding":
                found[group] = self.layers[0].seen["embed"]
            elif kind == "mlp":
                found[group] = self.layers[layer].mlp
            elif kind == "error":
                found[group] = self._through(layer, self.errors[layer], np.arange(len(self.ids)))
        for layer, written in enumerate(self.writes):
            for one in written:
                first = np.array([self.nodes[n].layer for n in one.sources]) == layer
                rows = self._through(layer, one.activations[:, None] * one.directions, one.positions)
                found[one.sources[first]] = rows[first]
        return found

    def _through(self, i: int, rows: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Rows [n d] of the MLP's output as the residual stream gets them."""
        layer = self.layers[i]
        rows = rows * np.float32(layer.block.residual)
        if self._after(i):
            return rows
        norm = layer.mlp_after
        rows = rows * layer.mlp_scale
        rows = rows - rows.mean(-1, keepdims=True) if norm.centred else rows
        rows = rows * norm.inverse[at]
        return rows if norm.weight is None else rows * norm.weight

    def sites(self, n: int) -> list[tuple[str, int | None, np.ndarray]]:
        """The activations in which a source is written, before norms that follow, and its row of each."""
        node = self.nodes[n]
        if node.kind != "feature":
            of = self.layers[node.layer]
            site = f"{of.path}.mlp_post_norm" if self._after(node.layer) else of.mlp_site
            return [(site, None, self.errors[node.layer][node.position])]
        of = self.by_layer[node.layer]
        found = []
        for name in of.writes:
            one = next(one for one in self.writes[_layer(name)] if n in one.sources)
            at = int(np.flatnonzero(one.sources == n)[0])
            found.append((name, None, one.activations[at] * one.directions[at]))
        return found

    def attends(self, n: int) -> None:
        """None: attention is no node of this graph."""

    def _after(self, i: int) -> bool:
        """Whether a layer's features write what a norm after the MLP gives."""
        return i in self.by_layer and _site(self.by_layer[i]) == "mlp_post_norm"

    def reads(self, kind: str, layer: int, chosen: np.ndarray) -> Reads:
        """The inputs of some sources of one group."""
        of, time = self.layers[layer], 2.0 * layer + 1
        at = np.array([self.nodes[n].position for n in chosen])
        weights = (at[:, None] == np.arange(len(self.ids))).astype(np.float32)
        if kind == "mlp":
            norms = np.linalg.norm(self.written[chosen].astype(np.float64), axis=-1)
            unit = (self.written[chosen] / np.maximum(norms, 1e-30)[:, None]).astype(np.float32)
            direction, constants = of.neurons_read(at, of.mlp_after.back_at(unit, at) @ of.down.T)
            constants = constants + np.einsum("nd,nd->n", unit, of.mlp_constant[at])
            return Reads(direction, weights, norms, constants, time)
        dictionary = self.by_layer[layer]
        index = np.array([self.nodes[n].index for n in chosen])
        rows = dictionary.W_enc[index]
        values = (of.mlp_input[at] * rows).sum(-1, dtype=np.float64) + dictionary.b_enc[index]
        constants = dictionary.b_enc[index].astype(np.float64)
        if of.mlp_norm.bias is not None:
            constants = constants + rows @ of.mlp_norm.bias
        return Reads(of.mlp_norm.back_at(rows, at), weights, values, constants, time)

    def rows(self, reads: Reads) -> Rows:
        """The effects of all sources on what targets read, through all frozen layers between."""
        size = max(1, AT_ONCE // (len(self.ids) * reads.directions.shape[-1]))
        parts = [
            self._down(
                reads.directions[n : n + size, None] * reads.weights[n : n + size, :, None], reads.time
            )
            for n in range(0, len(reads.directions), size)
        ]
        effects, constants = (np.concatenate(each) for each in zip(*parts, strict=True))
        return Rows(effects, reads.values.astype(np.float64), reads.constants + constants)

    def _down(self, u: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Directions [n t d] of the residual stream, down to the embedding: effects [n s], and constants."""
        effects, constants = np.zeros((len(u), len(self.nodes)), np.float32), np.zeros(len(u))
        passed: dict[int, np.ndarray] = {}  # by skips, to what the MLP of a layer reads
        for i in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[i]
            if 2 * i + 1 < time:
                constants += self._mlp(i, u, effects, passed)
            elif 2 * i + 1 > time or layer.block.parallel:  # in parallel it reads what attention reads
                continue
            more = passed.pop(i, np.float32(0))
            attended = u if layer.block.parallel else u + more
            back, constant = layer.attention_back(attended)
            constants += constant + np.einsum("ntd,td->n", attended, layer.attention_constant)
            u = attended + back + (more if layer.block.parallel else np.float32(0))
        group = self.groups[0][2]
        effects[:, group] = np.einsum("ntd,td->nt", u, self.layers[0].seen["embed"])
        return effects, constants

    def _mlp(self, i: int, u: np.ndarray, effects: np.ndarray, passed: dict[int, np.ndarray]) -> np.ndarray:
        """Constants, and effects of what an MLP writes, along directions u; skips add to ``passed``."""
        layer = self.layers[i]
        g = u * np.float32(layer.block.residual)
        g = g if self._after(i) else layer.mlp_after.back(g) * layer.mlp_scale  # of the MLP's output
        for one in self.writes[i]:
            for p in np.unique(one.positions):
                here = one.positions == p
                by = one.directions[here] * one.activations[here, None]
                effects[:, one.sources[here]] += g[:, p] @ by.T
        kind = "error" if i in self.by_layer else "mlp"
        group = next(group for what, at, group in self.groups if (what, at) == (kind, i))
        constant = np.einsum("ntd,td->n", g, self.fixed[i])
        after = layer.mlp_after.bias
        if kind == "mlp":
            effects[:, group] = np.einsum("ntd,td->nt", u, layer.mlp)
        else:
            effects[:, group] = np.einsum("ntd,td->nt", g, self.errors[i])
            if after is not None and not self._after(i):
                constant = constant + (u @ after).sum(-1) * layer.block.residual
        for at, skip in self.skips.get(i, []):
            norm = self.layers[at].mlp_norm
            read = np.where(self.sinks[at], np.float32(0), g @ skip)
            passed[at] = passed.get(at, np.float32(0)) + norm.back(read)
            if norm.bias is not None:
                constant = constant + (read @ norm.bias).sum(-1)
        return constant


def _by_layer(layers: Sequence[FrozenLayer], dictionaries: Sequence[SAE]) -> dict[int, SAE]:
    """The transcoder of each layer that has one; UserError for a dictionary that replaces no MLP."""
    found: dict[int, SAE] = {}
    for one in dictionaries:
        if one.card.kind not in ("transcoder", "cross_layer"):
            raise UserError(f"a graph's features are a transcoder's, and these are of kind {one.card.kind!r}")
        if not 0 <= one.layer < len(layers):
            raise UserError(f"a transcoder reads layer {one.layer}, and this model has {len(layers)} layers")
        layer = layers[one.layer]
        read = mlp_input(layer.engine.config, one.layer)
        later = layers[one.layer :]
        places = {site for of in later for site in (of.mlp_site, f"{of.path}.mlp_post_norm")}
        if one.reads != (read,) or not set(one.writes) <= places:
            raise UserError(
                f"a transcoder reads {read}, and writes {layer.mlp_site} or that of a later layer: this one "
                f"reads {', '.join(one.reads)} and writes {', '.join(one.writes)}"
            )
        width = layer.middle.shape[-1]
        if set(one.card.widths) != {width}:
            raise UserError(
                f"the transcoder of layer {one.layer} is of activations of {one.card.widths[0]} numbers, and "
                f"this model's have {width}"
            )
        if one.layer in found:
            raise UserError(f"there are two transcoders of layer {one.layer}: give one a layer")
        found[one.layer] = one
    if not found:
        raise UserError("there is no transcoder: give a folder that `cutaway sae --kind transcoder` wrote")
    missing = {_layer(name) for one in found.values() for name in one.writes} - set(found)
    if missing:
        raise UserError(f"a cross-layer set writes layer {min(missing)}, whose own transcoder is not there")
    return found


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def _site(of: SAE) -> str:
    """What a transcoder writes of a layer: "mlp.down", of a mixture "mlp.out", or "mlp_post_norm"."""
    return of.writes[0].split(".", 2)[2]


def _true(layer: FrozenLayer, after: bool) -> np.ndarray:
    """float32 [t d]: what the MLP wrote, before or after a norm that follows."""
    written = layer.seen[layer.mlp_site]
    return layer.mlp_after.forward(written * layer.mlp_scale) if after else written.copy()
