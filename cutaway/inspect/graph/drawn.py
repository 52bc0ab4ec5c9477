"""A graph as SVG: its nodes by layer and token, and its strongest edges."""

from __future__ import annotations

import numpy as np

from cutaway.inspect.graph.attribution_graph import Graph, Node
from cutaway.inspect.graph.layout import layout
from cutaway.page.svg.drawing import Drawing

SHOWN = 250  # edges
COLOURS = {
    "embedding": "quiet",
    "head": "series-2",
    "mlp": "series-4",
    "neuron": "series-3",
    "feature": "series-1",
    "error": "quiet",
    "logit": "accent",
}


def svg(graph: Graph) -> str:
    """The drawing; edges are the strongest by the influence that they carry."""
    places = layout(graph)
    sheet = Drawing(f"Attribution graph of {graph.prompt!r}", places.width, places.height)
    for n, (left, right) in enumerate(places.columns):
        if n % 2:
            sheet.rect(left, 0, right - left, places.height, "cell", opacity=0.6)
    for name, y in places.bands:
        sheet.text(0, y + 4, name)
        sheet.line([(36, y), (places.width, y)], "rule", opacity=0.6)
    strongest = sorted(graph.edges(), key=lambda edge: -abs(edge[2]) * _carried(graph, edge[1]))[:SHOWN]
    most = max((_share(graph, s, t) for s, t, _ in strongest), default=1.0)
    for s, t, by in reversed(strongest):
        (x1, y1), (x2, y2) = places.xy[s], places.xy[t]
        role, width = "heat" if by > 0 else "cool", 0.5 + 2.5 * _share(graph, s, t) / most
        bend = (y1 + y2) / 2
        sheet.path(f"M{x1} {y1}C{x1} {bend} {x2} {bend} {x2} {y2}", role, width=width, opacity=0.35)
    for n, node in enumerate(graph.nodes):
        _node(sheet, node, *places.xy[n])
    for token, (left, right) in zip(graph.tokens, places.columns, strict=True):
        shown = token if len(token) <= 12 else token[:11] + "…"
        sheet.text((left + right) / 2, places.height - 8, shown, "ink", anchor="middle", mono=True)
    for n in graph.logits:
        sheet.text(
            places.xy[n][0], places.xy[n][1] - 9, graph.nodes[n].name, "ink", anchor="middle", mono=True
        )
    return str(sheet)


def _share(graph: Graph, s: int, t: int) -> float:
    """The influence that an edge carries."""
    total = float(np.abs(graph.effects[t]).sum())
    return abs(float(graph.effects[t, s])) / total * _through(graph, t) if total else 0.0


def _through(graph: Graph, t: int) -> float:
    return float(graph.influence[t] + graph.weights[t])


def _carried(graph: Graph, t: int) -> float:
    """What a unit of effect on a node carries of influence."""
    return _through(graph, t) / max(float(np.abs(graph.effects[t]).sum()), 1e-30)


def _node(sheet: Drawing, node: Node, x: float, y: float) -> None:
    """A circle for what is a feature, a head or an end; a square for an MLP; smaller for a neuron."""
    role, tip = COLOURS[node.kind], f"{node.name} at {node.position}: {node.value:.3g}"
    if node.kind in ("mlp", "error"):
        sheet.rect(x - 4, y - 4, 8, 8, "paper" if node.kind == "error" else role, border=role, tip=tip)
    elif node.kind == "neuron":
        sheet.path(f"M{x} {y - 5}L{x + 5} {y}L{x} {y + 5}L{x - 5} {y}Z", role, filled=True)
    else:
        sheet.circle(x, y, 5, role)
