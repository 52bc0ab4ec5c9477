"""Where a graph's nodes are drawn: a column a token, a band a layer from the embedding up to the logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cutaway.inspect.graph.attribution_graph import Graph

STEP, PAD, LEFT, BAND = 15.0, 12.0, 44.0, 20.0  # pixels: between nodes, around a cell, of the layers' names
TOKEN = 22.0  # of the row of tokens
ROWS, FEW = 4, 10  # nodes above each other in a cell, before it grows wider; half of it for so few tokens
NARROWEST = 800.0  # columns are stretched to this width, which a window of 1,300 pixels shows whole
LETTER = 7.2  # of a token's text


@dataclass(frozen=True)
class Layout:
    """Nodes' places ``xy``, the ``columns`` of tokens (left, right), and layers' ``bands`` (name, middle)."""

    width: float
    height: float
    xy: list[tuple[float, float]]
    columns: list[tuple[float, float]]
    bands: list[tuple[str, float]]


def layout(graph: Graph) -> Layout:
    """The layout of a graph; layers without nodes have no band."""
    cells: dict[tuple[int, int], list[int]] = {}
    for n, node in enumerate(graph.nodes):
        cells.setdefault((node.layer, node.position), []).append(n)
    per_row = [1] * len(graph.tokens)
    rows_of_cell = ROWS // 2 if len(graph.tokens) <= FEW else ROWS
    for (_, position), inside in cells.items():
        per_row[position] = max(per_row[position], math.ceil(len(inside) / rows_of_cell), min(3, len(inside)))
    names = [min(len(token), 12) * LETTER + PAD for token in graph.tokens]
    widths = [max(STEP * count + PAD, name) for count, name in zip(per_row, names, strict=True)]
    more = max(0.0, NARROWEST - LEFT - sum(widths)) / len(widths)
    columns: list[tuple[float, float]] = []
    for width in widths:
        left = columns[-1][1] if columns else LEFT
        columns.append((round(left, 1), round(left + width + more, 1)))
    found: dict[int, tuple[float, float]] = {}
    bands: list[tuple[str, float]] = []
    top, last = TOKEN + PAD, max(node.layer for node in graph.nodes)
    for layer in sorted({layer for layer, _ in cells}, reverse=True):
        here = {position: inside for (at, position), inside in cells.items() if at == layer}
        rows = max(math.ceil(len(inside) / per_row[p]) for p, inside in here.items())
        height = max(BAND, STEP * rows + 5) if layer >= 0 else TOKEN
        for position, inside in here.items():
            middle = sum(columns[position]) / 2
            for at, n in enumerate(inside):
                row, place = divmod(at, per_row[position])
                inside_row = min(per_row[position], len(inside) - row * per_row[position])
                x = middle + (place - (inside_row - 1) / 2) * STEP
                found[n] = (round(x, 1), round(top + height / 2 + (row - (rows - 1) / 2) * STEP, 1))
        names = {-1: "", last: "logits"}
        bands.append((names.get(layer, str(layer)), round(top + height / 2, 1)))
        top += height
    xy = [found[n] for n in range(len(graph.nodes))]
    return Layout(round(columns[-1][1] + PAD, 1), round(top + TOKEN + PAD, 1), xy, columns, bands)
