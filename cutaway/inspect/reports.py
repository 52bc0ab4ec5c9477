"""Reports of single studies in the page's look: a mechanism's mask and cost, a sparse autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cutaway.attention.common import usual
from cutaway.errors import UserError
from cutaway.page import report
from cutaway.page.charts import Axis, Heat, Labels, Plot, Series, Table
from cutaway.page.svg import diagrams

if TYPE_CHECKING:
    from cutaway.attention.common.mask_plot import MaskPlot
    from cutaway.attention.common.registry import Kind
    from cutaway.inspect.activations import Activations
    from cutaway.inspect.sae import SAE

ROWS = 4096  # activations that an autoencoder's report reads
FEATURES = 200  # in its table
TITLES = {
    "sae": "Sparse autoencoder",
    "transcoder": "Transcoder",
    "cross_layer": "Cross-layer transcoder",
    "crosscoder": "Crosscoder",
}


def shared_heads(kind: Kind) -> str | None:
    """An SVG of which query heads read which keys and values, in Llama 3 8B's sizes; None without heads."""
    try:
        config = kind.like(usual.EXAMPLE, {})
    except UserError:
        return None
    heads, size = getattr(config, "heads", 0), getattr(config, "key_size", 0)
    if not heads or not size:
        return None
    latent, state = getattr(config, "latent", 0) or 0, getattr(config, "state_shape", ())
    groups = heads if latent else getattr(config, "groups", heads)
    if state:
        kept = f"{state[0]} matrices of {state[1]} × {state[2]}, however long the text is"
        groups = state[0]
    elif latent:
        kept = f"one vector of {latent} numbers a token, of which all heads make their keys and values"
    else:
        kept = f"{groups} keys and {groups} values of {size} numbers a token"
    most = diagrams.MOST  # of 32 heads half are drawn, with half of the groups
    shown = min(heads, most)
    each = max(1, heads // groups)
    if shown < heads:
        kept += f"; {shown} of {heads} heads are drawn"
    own = diagrams.Sharing(kind.name, shown, max(1, shown // each), kept, latent, bool(state))
    return diagrams.sharing(f"Heads of {kind.name}", [own])


def mechanism(
    kind: Kind, options: Mapping[str, Any], drawn: MaskPlot, figures: Mapping[str, Any]
) -> report.Report:
    """A report: what the mechanism is, its mask, what it costs, and its options.

    ``figures``: those of ``usual.by_length``.
    """
    parts: list[report.Part] = [report.Text(kind.summary)]
    if drawn.mask is not None:
        names = [str(i) for i in range(len(drawn.mask))]
        cells = [[float(cell) for cell in row] for row in drawn.mask]
        parts.append(Heat("Mask", Labels("query", names), Labels("key", names), cells, "seen", high=1.0))
    parts.append(report.Text(drawn.caption))
    cost = kind.cost
    formulas = {"prefill, multiplications": cost.prefill, "memory meanwhile, numbers": cost.memory}
    formulas |= {"decode, multiplications": cost.decode or "nothing is decoded", "cache, numbers": cost.state}
    parts.append(Table("Cost of one layer", ["", "formula"], [list(one) for one in formulas.items()]))
    width, heads, groups, size, _ = usual.EXAMPLE
    curves = {"prefill": "multiplications", "decode": "multiplications", "cache": "bytes, float16"}
    charts = [
        Plot(
            name.capitalize(),
            Axis("tokens of text", log=True),
            Axis(unit, log=True),
            [Series(kind.name, figures["lengths"], [value or float("nan") for value in figures[name]])],
            note=f"Width {width:,}, {heads} heads of {size}, {groups} of keys and values; options as usual.",
        )
        for name, unit in curves.items()
        if any(figures.get(name, ()))
    ]
    parts.append(report.Grid(charts))
    if options:
        rows = [[name, str(value)] for name, value in options.items()]
        parts.append(Table("Options of the mask", ["option", "value"], rows))
    return report.Report(f"Attention: {kind.name}", parts)


def alignment(one: Mapping[str, Any]) -> Heat:
    """A translator's attention (``how/alignment.py``): a row a letter written, a column one read."""
    return Heat(
        f"Bahdanau's attention writes “{one['word']}” backwards",
        Labels("letter written", list(one["written"])),
        Labels("letter read", list(one["word"])),
        one["weights"],
        "attention weight",
        high=1.0,
    )


def aligned(found: Mapping[str, Any]) -> report.Report:
    """A report of all words that the translator wrote."""
    about = (
        "A recurrent network reads the letters of a word, another writes them from the last to the first. "
        f"Bahdanau's attention is between them. Trained for {found['steps']} steps on random letters."
    )
    return report.Report("Alignments", [report.Text(about), *map(alignment, found["words"])])


def autoencoder(sae: SAE, data: Activations) -> str:
    """One HTML file: how much the features explain, how often each fires, and how strongly."""
    card = sae.card
    index = np.linspace(0, len(data) - 1, min(ROWS, len(data))).astype(np.int64)
    usual = index if card.keep_sinks else index[~data.sinks(sae.name)[index]]
    active = sae.encode(sae.rows({name: data.rows(name, usual) for name in sae.reads}))
    often, most = (active > 0).mean(0), active.max(0, initial=0.0)
    order = np.argsort(-often, kind="stable")
    facts = [
        ["features", card.features],
        ["kind", f"{card.kind}, {card.activation}, k {card.k}{', linear skip' * card.skip}"],
        ["variance unexplained, held out", card.unexplained],
        ["the same with attention sinks", card.unexplained_with_sinks],
        ["the same of the best linear map", card.linear],
        ["features a token, held out", card.l0],
        ["dead features", card.dead],
        ["tokens", card.tokens],
        ["attention sinks", card.sinks],
        ["steps", card.steps],
    ]
    rank = list(range(1, len(order) + 1))
    fired = Plot(
        "How often features fire",
        Axis("feature, by how often it fires", log=True),
        Axis("part of tokens", log=True),
        [Series("features", rank, [float(often[id]) or float("nan") for id in order])],
        note=f"On {len(usual):,} tokens of the data, training tokens among them.",
    )
    strong = Plot(
        "Largest activation",
        Axis("part of tokens", log=True),
        Axis("largest activation"),
        [Series("features", often[often > 0].tolist(), most[often > 0].tolist(), line=False, points=True)],
    )
    listed = [[int(id), float(often[id]), float(most[id])] for id in order[:FEATURES]]
    return report.html(
        f"{TITLES[card.kind]} of {sae.name}",
        [
            report.Text(f"Model: {Path(card.model).name}"),
            Table("What it is", ["", "value"], facts),
            report.Grid([fired, strong]),
            Table("Features", ["feature", "fires on", "largest activation"], listed),
        ],
    )
