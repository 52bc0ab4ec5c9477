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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect import edits
from cutaway.inspect import names as naming
from cutaway.inspect.attribution import head_outputs
from cutaway.inspect.inputs import attention_names
from cutaway.inspect.instrumented import Values
from cutaway.inspect.pairs import Answers, Pair, pair
from cutaway.inspect.patching import HEADED, Over, activation
from cutaway.inspect.result import Result
from cutaway.inspect.subject import Metric, Subject, subject_of
from cutaway.inspect.trace_values import TraceValues
from cutaway.model.config import Decoder
from cutaway.store import files
from cutaway.store.files import Progress, silent

Sender = tuple[str, float, np.ndarray]
STEPS = 32  # of the path that gradients are averaged over
MISSED = 0.1  # of the metric's difference, that parts may miss without a warning
NEAREST = 24.0  # e-foldings towards zero: norms turn a little away from it into a jump


def gradients(
    subject: Subject, ids: Sequence[int], metric: Metric, names: Sequence[str], edit: edits.Given = ()
) -> TraceValues:
    """The gradient of a metric of the logits [t v], a tensor, by each activation, in its place.

    Raises UserError for an activation that the metric does not depend on.
    """
    import torch

    from cutaway.inspect.instrumented_pytorch import array

    engine = subject.pytorch
    every = engine.shapes()
    kept = [own for name in naming.resolve(every, names) for own in naming.expanded(every, name)]
    start = {"embed": lambda value: value.detach().requires_grad_()}
    seen = engine.run([ids], list(dict.fromkeys((*kept, "logits"))), (subject.edit, start, edit), grad=True)
    vocabulary = min(subject.config.vocab, len(subject.tokenizer))
    with torch.enable_grad():
        number = metric(seen["logits"][0, :, :vocabulary])
        wanted = {name: seen[name] for name in kept if seen[name].requires_grad}
        found = torch.autograd.grad(number, list(wanted.values()), allow_unused=True)
    grads = {name: grad for name, grad in zip(wanted, found, strict=True) if grad is not None}
    for name in kept:
        if name not in grads:
            raise UserError(f"the metric does not depend on {name!r}, so it has no gradient by it")
    values = {name: array(grads[name])[0] for name in kept}
    return TraceValues(subject, ids, values, engine)


def attribution_patching(
    lm: Any,
    text: Any,
    other: Any,
    over: Over = "residual",
    *,
    answers: Answers | None = None,
    metric: Metric | None = None,
) -> Result:
    """What `patching.patching` measures, to first order, with its axes, at every position."""
    subject, found = subject_of(lm), pair(lm, text, other, answers, metric)
    layers = range(len(subject.config.blocks))
    names = [activation(subject, over, layer) for layer in layers]
    ours, theirs = _by_pytorch(subject, [found.ids, found.other], names)
    grads = gradients(subject, found.ids, found.metric, names)
    span = found.there - found.here
    products = [(theirs[n] - ours[n]).astype(np.float64) * grads[n] / span for n in names]
    positions = {} if over == "heads" else {"position": [f"{p} {x}" for p, x in enumerate(grads.tokens)]}
    heads = {"head": range(max(map(len, products)))} if over in HEADED else {}
    axes: dict[str, Sequence[Any]] = {"layer": layers, **positions, **heads}
    values = np.full([*map(len, axes.values())], np.nan)
    for row, product in zip(values, products, strict=True):
        if over in HEADED:  # [h t k]
            row[..., : len(product)] = product.sum((1, 2)) if over == "heads" else product.sum(-1).T
        else:
            row[:] = product.sum(-1)
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
    import torch

    subject = subject_of(lm)
    ids = subject.encode(text)
    end = _by_pytorch(subject, [ids], [name])[0][name]
    start = np.zeros_like(end)
    if baseline is not None:
        theirs = subject.encode(baseline)
        if len(theirs) != len(ids):
            raise UserError(
                f"the baseline has {len(theirs)} tokens, the text {len(ids)}: they must be as many"
            )
        start = _by_pytorch(subject, [theirs], [name])[0][name]
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    places, weights = (nodes + 1) / 2, weights / 2
    if baseline is None:
        places = np.exp(-NEAREST * places)
        weights = weights * NEAREST * places
    total = np.zeros_like(end, np.float64)
    for step, (place, weight) in enumerate(zip(places, weights, strict=True), 1):
        point = torch.from_numpy(start + np.float32(place) * (end - start))[None]
        given = {name: lambda value, point=point: point.to(value).requires_grad_()}
        grads = gradients(subject, ids, metric, [name], given)
        total += float(weight) * grads[name].astype(np.float64)
        progress("integrating", step, steps)
    parts = ((end - start).astype(np.float64) * total).sum(-1)
    difference = _metric(subject, ids, metric) - _metric(
        subject, ids, metric, {name: lambda value: torch.from_numpy(start)[None].to(value)}
    )
    axes = {"position": [f"{p} {token}" for p, token in enumerate(grads.tokens)]}
    error = abs(difference - float(parts.sum()))
    if not error <= MISSED * abs(difference):
        better = "a baseline text of equal length" if baseline is None else "more steps"
        warnings.warn(
            f"integrated gradients at {name} sum to {float(parts.sum()):.3g}, and the metric differs by "
            f"{difference:.3g}: do not rely on them; give {better}",
            stacklevel=2,
        )
    facts = {"difference": difference, "error": error, "steps": steps}
    return Result(parts, axes, f"integrated gradients at {name}", facts)


def _by_pytorch(subject: Subject, texts: Sequence[Sequence[int]], names: Sequence[str]) -> list[Values]:
    """Activations of the model that has the gradients."""
    return subject.pytorch.values(texts, names, [subject.edit] * len(texts))


def _metric(subject: Subject, ids: Sequence[int], metric: Metric, edit: edits.Given = ()) -> float:
    """A metric of the logits, a tensor."""
    logits = subject.pytorch.run([ids], ["logits"], (subject.edit, edit))["logits"]
    return float(metric(logits[0, :, : min(subject.config.vocab, len(subject.tokenizer))]))


@dataclass(frozen=True)
class Circuit:
    """Edges (sender, receiver, effect) of a model's parts, largest first: "3.2" a head, "mlp 3", "logits"."""

    edges: tuple[tuple[str, str, float], ...]
    title: str

    def strongest(self, count: int) -> Circuit:
        """The graph of the edges with the largest effects."""
        if count < 0:
            raise UserError(f"count is {count}: it goes from 0")
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
        files.write_file(path, text)
        return Path(path)


Receivers = Literal["layers", "heads"]


def circuit(
    lm: Any,
    text: Any,
    other: Any,
    *,
    answers: Answers | None = None,
    metric: Metric | None = None,
    receivers: Receivers = "layers",
) -> Circuit:
    """The first-order effect of every edge: a part's difference of the texts, at a later part's input.

    Senders are the embedding, heads and MLPs; receivers each layer's attention, its MLP, and the logits. Over
    "heads" attention is each head's query ("3.2 q"), and each key-value head's key and value. An effect is a
    fraction of the metric's difference between the texts (edge attribution patching, 2310.10348). A sender's
    difference is that of what the residual stream gets of it, by norms after it too.
    """
    import torch

    if receivers not in ("layers", "heads"):
        raise UserError(f'receivers is {receivers!r}: use "layers" or "heads"')
    subject, found = subject_of(lm), pair(lm, text, other, answers, metric)
    config, model = subject.config, subject.pytorch.model
    span, blocks = found.there - found.here, range(len(config.blocks))
    reads = _reads(config)
    kept = ["embed", *(activation(subject, "heads", i) for i in blocks), *(_mlp(subject, i) for i in blocks)]
    kept += [name for name in attention_names(config) if name.endswith((".out_input", "attention.out"))]
    kept += [read.stream for read in reads.values()]
    ours, theirs = _by_pytorch(subject, [found.ids, found.other], list(dict.fromkeys(kept)))
    grads = _received(subject, found, reads, receivers)
    senders = _senders(subject, ours, theirs)
    edges: list[tuple[str, str, float]] = []
    for receiver, grad in grads.items():
        kind, _, layer = receiver.partition(" ")
        if kind not in ("logits", "mlp", "attention"):
            kind, layer = "attention", receiver.partition(".")[0]
        stream, _, norm = reads[kind if kind == "logits" else f"{kind} {layer}"]
        place = float("inf") if kind == "logits" else 2 * int(layer) + (kind == "mlp")
        if kind == "mlp" and config.blocks[int(layer)].parallel:
            place = 2 * int(layer)
        x = torch.from_numpy(ours[stream]).to(next(model.parameters())).requires_grad_()
        with torch.enable_grad():
            normed = model.get_submodule(norm)(x)
            (back,) = torch.autograd.grad(normed, x, torch.from_numpy(grad).to(normed))
        backward = back.double().cpu().numpy()
        edges += [(s, receiver, float((d * backward).sum()) / span) for s, at, d in senders if at < place]
    return Circuit(tuple(sorted(edges, key=lambda edge: -abs(edge[2]))), found.words)


class Read(NamedTuple):
    """What a receiver reads: the residual stream, the activation that it gets, and the norm between them."""

    stream: str
    at: str
    norm: str


def _reads(config: Decoder) -> dict[str, Read]:
    """What each attention, each MLP and the logits read; an absent norm returns its input."""
    found: dict[str, Read] = {}
    stream = "embed"
    for i, block in enumerate(config.blocks):
        norms = f"blocks.{i}.attention_norm", f"blocks.{i}.mlp_norm"
        found[f"attention {i}"] = Read(stream, norms[0], norms[0])
        before = stream if block.parallel else f"blocks.{i}.middle"
        found[f"mlp {i}"] = Read(before, norms[1], norms[block.parallel != "shared"])
        stream = f"blocks.{i}.out"
    return found | {"logits": Read(stream, "norm", "norm")}


def _received(
    subject: Subject, found: Pair, reads: Mapping[str, Read], receivers: Receivers
) -> dict[str, np.ndarray]:
    """The metric's gradient [t d] by what each receiver reads, as its norm gives it."""
    import torch

    from cutaway.hooks import tracing
    from cutaway.inspect.instrumented_pytorch import array

    engine, blocks = subject.pytorch, subject.config.blocks
    names = {f"blocks.{i}.attention.{one}" for i in range(len(blocks)) for one in "qkv"}
    names = names if receivers == "heads" else set[str]()
    start = {"embed": lambda value: value.detach().requires_grad_()}
    inputs = sorted({*names, *(read.at for read in reads.values())})
    # Copies: without a norm what is read is the residual stream itself, whose gradient is of all later parts.
    copies: dict[str, Any] = {read.at: torch.clone for read in reads.values()}
    with tracing(engine.model, edit=copies):
        seen = engine.run([found.ids], [*inputs, "logits"], (subject.edit, start), grad=True)
    made: dict[str, np.ndarray] = {}
    with torch.enable_grad():
        number = found.metric(seen["logits"][0, :, : min(subject.config.vocab, len(subject.tokenizer))])
        by = torch.autograd.grad(number, [seen[name] for name in inputs], retain_graph=True)
        grads = dict(zip(inputs, by, strict=True))
        for receiver, (_, norm, _) in reads.items():
            kind, _, layer = receiver.partition(" ")
            if kind != "attention" or receivers == "layers":
                own = grads[norm]
                if kind == "attention" and blocks[int(layer)].parallel == "shared":  # the MLP reads it too
                    own = own - grads[reads[f"mlp {layer}"].at]
                made[receiver] = array(own)[0]
                continue
            for one in "qkv":
                name = f"blocks.{layer}.attention.{one}"
                for head in range(grads[name].shape[1]):
                    only = torch.zeros_like(grads[name])
                    only[:, head] = grads[name][:, head]
                    (read,) = torch.autograd.grad(seen[name], seen[norm], only, retain_graph=True)
                    made[f"{layer}.{head} {one}"] = array(read)[0]
    return made


def _mlp(subject: Subject, i: int) -> str:
    """What the residual stream gets of an MLP, before a residual factor."""
    return (
        f"blocks.{i}.mlp_post_norm"
        if "mlp_post_norm" in subject.config.blocks[i].norms
        else activation(subject, "mlp", i)
    )


def _senders(subject: Subject, ours: Values, theirs: Values) -> list[Sender]:
    """The parts that add to the residual stream, where each is, and by how much [t d] the texts differ."""
    found: list[Sender] = [("embed", -1, theirs["embed"] - ours["embed"])]
    for i, block in enumerate(subject.config.blocks):
        there, here = (head_outputs(subject.pytorch, seen, i) for seen in (theirs, ours))
        found += [(f"{i}.{h}", 2 * i, head) for h, head in enumerate(there - here)]
        name = _mlp(subject, i)
        found.append((f"mlp {i}", 2 * i + 1, (theirs[name] - ours[name]) * np.float32(block.residual)))
    return found
