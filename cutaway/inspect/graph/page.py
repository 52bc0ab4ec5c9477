"""A graph as one HTML file: nodes to hover, pin, group and clamp, and what becomes of the logits."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cutaway.inspect.arrays import largest
from cutaway.inspect.attribution import unembedded
from cutaway.inspect.graph.attribution_graph import Graph
from cutaway.inspect.graph.clamp import CLAMPED, Clamps, measured, passed_on, reduced
from cutaway.inspect.graph.layout import layout
from cutaway.inspect.pairs import token_text, vocabulary_of
from cutaway.inspect.subject import subject_of
from cutaway.page import bundle
from cutaway.store.files import Progress, silent

ENTRY, STYLES = "graph/main.js", ("charts.css", "report.css", "graph/graph.css")
BODY = """<a class="skip" href="#graph">Skip to the graph</a>
<header id="head"></header>
<main id="graph" tabindex="-1"><p class="wait">Loading the graph …</p></main>"""
PROMOTED, ATTENDED = 5, 3
GROUP_TIMES = (0.0, 2.0)  # of their value, that groups are measured at


def page(lm: Any, graph: Graph, pruned: Graph, checked: Mapping[str, Any], document: Any) -> str:
    """The file. ``pruned`` is what is drawn, of the whole ``graph``; ``document`` is its JSON to export."""
    title = f"Attribution graph: {pruned.prompt}"
    ends = {node.index for node in pruned.nodes if node.kind in ("embedding", "logit")}
    texts = {id: token_text(subject_of(lm), id) for id in ends}
    data = json.dumps(
        _data(graph, pruned, promoted(lm, pruned), texts, checked, document), separators=(",", ":")
    ).encode()
    return bundle.document(title, BODY, entry=ENTRY, styles=STYLES, data=zlib.compress(data, 9))


def _data(
    graph: Graph,
    pruned: Graph,
    promotes: Sequence[Sequence[str]],
    texts: Mapping[int, str],
    checked: Mapping[str, Any],
    document: Any,
) -> dict[str, Any]:
    places = layout(pruned)
    every = {node.id: n for n, node in enumerate(graph.nodes)}
    kept = np.array([every[node.id] for node in pruned.nodes])
    direct = reduced(passed_on(graph), kept)
    nodes = [
        {
            "id": node.id,
            "kind": node.kind,
            "layer": node.layer,
            "position": node.position,
            "name": node.name if node.kind not in ("embedding", "logit") else texts[node.index],
            "value": _short(node.value),
            "influence": _short(pruned.influence[n]),
            "x": places.xy[n][0],
            "y": places.xy[n][1],
            "promotes": list(promotes[n]),
            "attends": _attends(pruned, n),
            "clamped": node.kind in CLAMPED,
        }
        for n, node in enumerate(pruned.nodes)
    ]
    return {
        "prompt": pruned.prompt,
        "model": pruned.model,
        "facts": dict(pruned.facts),
        "tokens": list(pruned.tokens),
        "width": places.width,
        "height": places.height,
        "columns": places.columns,
        "bands": places.bands,
        "nodes": nodes,
        "edges": [(s, t, _short(by)) for s, t, by in pruned.edges()],
        "logits": [(n, _short(pruned.nodes[n].probability)) for n in pruned.logits],
        "direct": [[_short(value) for value in row[:n]] for n, row in enumerate(direct)],
        "groups": [{"name": name, "members": list(members)} for name, members in pruned.groups],
        "checked": dict(checked),
        "export": document,
    }


def promoted(lm: Any, graph: Graph) -> list[tuple[str, ...]]:
    """The tokens whose logits each node's output raises most, all else as it is; none of an end."""
    subject, count = subject_of(lm), vocabulary_of(subject_of(lm))
    inner = [n for n, node in enumerate(graph.nodes) if node.kind in CLAMPED]
    found: list[tuple[str, ...]] = [()] * len(graph.nodes)
    if not inner or graph.source is None:
        return found
    rows = unembedded(subject.engine, graph.source.written[graph.sources[inner]], count)
    for n, best in zip(inner, largest(rows, PROMOTED).tolist(), strict=True):
        found[n] = tuple(token_text(subject, id) for id in best)
    return found


def check(lm: Any, graph: Graph, pruned: Graph, progress: Progress = silent) -> dict[str, Any]:
    """The model's own changes of the logits: each node ablated alone, each group at some multiples."""
    every = {node.id: n for n, node in enumerate(graph.nodes)}
    alone = [node.id for node in pruned.nodes if node.kind in CLAMPED]
    clamps: list[Clamps] = [{every[id]: 0.0} for id in alone]
    for _, members in pruned.groups:
        clamps += [{every[id]: times for id in members} for times in GROUP_TIMES]
    found = [[_short(one) for one in row] for row in measured(lm, graph, clamps, progress)]
    groups = {
        name: {
            str(times): found[len(alone) + i * len(GROUP_TIMES) + j] for j, times in enumerate(GROUP_TIMES)
        }
        for i, (name, _) in enumerate(pruned.groups)
    }
    return {"nodes": dict(zip(alone, found[: len(alone)], strict=True)), "groups": groups}


def _attends(graph: Graph, n: int) -> list[tuple[int, float]]:
    """The tokens that a head attends to most."""
    weights = (
        None if graph.source is None or graph.sources[n] < 0 else graph.source.attends(int(graph.sources[n]))
    )
    if weights is None:
        return []
    best = np.argsort(-weights, kind="stable")[:ATTENDED]
    return [(int(p), _short(weights[p])) for p in best if weights[p] > 0.01]


def _short(value: Any) -> float:
    """Four figures."""
    return float(f"{float(value):.4g}")
