"""Effects by gradients: attribution patching, integrated gradients, and the edges of a circuit.

    attribution_patching(lm, text, other, over="heads", answers=(" Paris", " Rome"))
    integrated_gradients(lm, text, metric, other)
    circuit(lm, text, other, answers=(" Paris", " Rome")).save("circuit.dot")

A patch's effect to first order is the difference of the activations times the metric's gradient: two passes
and a backward one in place of one pass a patch (Nanda 2023; 2310.10348). ``lm`` is a loaded model or a
``Subject``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cutaway.errors import UserError
from cutaway.inspect.attribution import head_outputs
from cutaway.inspect.causal import Answers, Over, activation, pair
from cutaway.inspect.inputs import attention_names
from cutaway.inspect.result import Result
from cutaway.inspect.trace import Metric, Trace, subject_of
from cutaway.store import files
from cutaway.store.files import Progress, silent

STEPS = 32  # of the path that gradients are averaged over
MISSED = 0.1  # of the metric's difference, that parts may miss without a warning
NEAREST = 24.0  # e-foldings towards zero: norms turn a little away from it into a jump


def attribution_patching(
    lm: Any,
    text: Any,
    other: Any,
    over: Over = "residual",
    *,
    answers: Answers | None = None,
    metric: Metric | None = None,
) -> Result:
    """What `causal.patching` measures, to first order: [position layer], over "heads" [layer head]."""
    subject, found = subject_of(lm), pair(lm, text, other, answers, metric)
    layers = range(len(subject.model.blocks))
    names = [activation(subject, over, layer) for layer in layers]
    ours, theirs = subject.trace([found.ids, found.other], [*names, "logits"])
    grads = ours.grads(found.metric, names)
    span = found.there - found.here
    products = [(theirs[n] - ours[n]).double() * grads[n].double() / span for n in names]
    if over == "heads":
        values = np.full((len(names), max(map(len, products))), np.nan)
        for row, product in zip(values, products, strict=True):
            row[: len(product)] = product.sum((1, 2)).cpu().numpy()
        axes: dict[str, Sequence[Any]] = {"layer": layers, "head": range(values.shape[1])}
    else:
        values = torch.stack([product.sum(-1) for product in products], dim=1).cpu().numpy()
        axes = {"position": [f"{p} {token}" for p, token in enumerate(ours.tokens)], "layer": layers}
    return Result(values, axes, f"attribution patching over {over}", found.facts)


def integrated_gradients(
    lm: Any,
    text: Any,
    metric: Metric,
    baseline: Any,
    name: str = "embed",
    steps: int = STEPS,
    progress: Progress = silent,
) -> Result:
    """Each token's part [position] of a metric, along the straight path of one activation (1703.01365).

    The path goes from the ``baseline`` text's activation, or from zero (None), by Gauss's rule. From zero the
    points crowd there, as a metric behind norms moves at every scale: it needs more ``steps``, and a text of
    equal length is the better start. The parts sum to the metric's difference of both ends up to
    ``error``; a warning says that they miss it by more than a tenth.
    """
    subject = subject_of(lm)
    trace = subject.trace([subject.encode(text)], [name, "logits"])[0]
    end = trace[name][None]
    start = torch.zeros_like(end)
    if baseline is not None:
        ids = subject.encode(baseline)
        if len(ids) != len(trace.ids):
            raise UserError(
                f"the baseline has {len(ids)} tokens, the text {len(trace.ids)}: they must be as many"
            )
        start = subject.run([ids], [name])[name]
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    places, weights = (nodes + 1) / 2, weights / 2
    if baseline is None:
        places = np.exp(-NEAREST * places)
        weights = weights * NEAREST * places
    total = torch.zeros_like(end, dtype=torch.double)
    for step, (place, weight) in enumerate(zip(places, weights, strict=True), 1):
        point = (start + float(place) * (end - start)).detach()
        moved = subject.edited({name: lambda _, point=point: point.requires_grad_()})
        total += float(weight) * Trace(moved, trace.ids, {}).grads(metric, [name])[name].double()[None]
        progress("integrating", step, steps)
    parts = ((end - start).double() * total).sum(-1)[0]
    at_start = subject.trace([trace.ids], ["logits"], {name: lambda _: start})[0]
    difference = float(metric(trace.logits)) - float(metric(at_start.logits))
    axes = {"position": [f"{p} {token}" for p, token in enumerate(trace.tokens)]}
    error = abs(difference - float(parts.sum()))
    if not error <= MISSED * abs(difference):
        better = "a baseline text of equal length" if baseline is None else "more steps"
        warnings.warn(
            f"integrated gradients at {name} sum to {float(parts.sum()):.3g}, and the metric differs by "
            f"{difference:.3g}: do not rely on them; give {better}",
            stacklevel=2,
        )
    facts = {"difference": difference, "error": error, "steps": steps}
    return Result(parts.cpu().numpy(), axes, f"integrated gradients at {name}", facts)


@dataclass(frozen=True)
class Circuit:
    """Edges (sender, receiver, effect) of a model's parts, largest first: "3.2" a head, "mlp 3", "logits"."""

    edges: tuple[tuple[str, str, float], ...]
    title: str

    def strongest(self, count: int) -> Circuit:
        """The graph of the edges with the largest effects."""
        return Circuit(self.edges[:count], self.title)

    def save(self, path: str | Path) -> Path:
        """Writes the graph: .dot for Graphviz, .json as node-link data that networkx reads."""
        nodes = sorted({name for edge in self.edges for name in edge[:2]})
        if Path(path).suffix == ".dot":
            lines = [f'  "{a}" -> "{b}" [label="{effect:.3f}"];' for a, b, effect in self.edges]
            text = "digraph circuit {\n  rankdir=BT;\n" + "\n".join(lines) + "\n}\n"
        elif Path(path).suffix == ".json":
            links = [{"source": a, "target": b, "weight": effect} for a, b, effect in self.edges]
            named = [{"id": name} for name in nodes]
            text = json.dumps(
                {"directed": True, "multigraph": False, "graph": {}, "nodes": named, "links": links}
            )
        else:
            raise UserError(f"{path}: a circuit is written as .dot or .json")
        files.write(path, text)
        return Path(path)


def circuit(
    lm: Any, text: Any, other: Any, *, answers: Answers | None = None, metric: Metric | None = None
) -> Circuit:
    """The first-order effect of every edge: a part's difference of the texts, at a later part's input.

    Senders are the embedding, heads and MLPs; receivers each layer's attention, its MLP, and the logits. An
    effect is a fraction of the metric's difference between the texts (edge attribution patching, 2310.10348).
    Norms after attention count with their size frozen.
    """
    subject, found = subject_of(lm), pair(lm, text, other, answers, metric)
    model = subject.model
    if any(block.parallel or block.post_norm for block in model.config.blocks):
        raise UserError(
            "edges are found in models whose blocks are attention, then an MLP, without norms after"
        )
    span, blocks = found.there - found.here, range(len(model.blocks))
    reads = {
        f"attention {i}": (f"blocks.{i - 1}.out" if i else "embed", f"blocks.{i}.attention_norm")
        for i in blocks
    }
    reads |= {f"mlp {i}": (f"blocks.{i}.middle", f"blocks.{i}.mlp_norm") for i in blocks}
    reads["logits"] = (f"blocks.{len(blocks) - 1}.out", "norm")
    zs = [activation(subject, "heads", i) for i in blocks]
    outs = [activation(subject, "mlp", i) for i in blocks]
    inputs = [
        name for name in attention_names(model) if name.endswith(".out_input")
    ]  # of W_o, where it is not z
    kept = ["embed", *zs, *inputs, *outs, *(name for at in reads.values() for name in at), "logits"]
    ours, theirs = subject.trace([found.ids, found.other], list(dict.fromkeys(kept)))
    grads = ours.grads(found.metric, [norm for _, norm in reads.values()])
    senders: list[tuple[str, float, Tensor]] = [("embed", -1, theirs["embed"] - ours["embed"])]
    for i in blocks:
        heads = head_outputs(model.blocks[i], theirs, i) - head_outputs(model.blocks[i], ours, i)
        senders += [(f"{i}.{h}", 2 * i, head) for h, head in enumerate(heads)]
        scale = model.config.blocks[i].residual
        senders.append((f"mlp {i}", 2 * i + 1, (theirs[outs[i]] - ours[outs[i]]) * scale))
    edges: list[tuple[str, str, float]] = []
    for receiver, (stream, norm) in reads.items():
        kind, _, layer = receiver.partition(" ")
        place = float("inf") if kind == "logits" else 2 * int(layer) + (kind == "mlp")
        x = ours[stream].detach().requires_grad_()
        with torch.enable_grad():
            normed = model.get_submodule(norm)(x)
            (back,) = torch.autograd.grad(normed, x, grads[norm].to(normed))
        edges += [
            (s, receiver, float((d * back).double().sum()) / span) for s, at, d in senders if at < place
        ]
    return Circuit(tuple(sorted(edges, key=lambda edge: -abs(edge[2]))), found.words)
