"""An explanation as drawings: tokens, merges, next tokens, lens, what layers and heads add, norms."""

from __future__ import annotations

from cutaway.inspect.explanation import Explanation
from cutaway.page.charts import Axis, Bar, Bars, Chart, Plot, Series
from cutaway.page.svg import diagrams, render
from cutaway.tokenizer.bpe import replaced

NAMED, LINES = 8, 100  # tokens whose lines have names, and that are drawn


def drawn(found: Explanation) -> dict[str, str]:
    """Each drawing as an SVG, by its name."""
    texts, ids = [one.text for one in found.tokens], [str(one.id) for one in found.tokens]
    made = {"tokens": diagrams.tokens(f"{len(ids)} tokens, with their ids", [("", texts, ids)])}
    for one in found.merges[:1]:
        made["merges"] = diagrams.merges(f"How “{one.piece}” is merged", _states(one.joined))
    charts = {
        "next": _next(found),
        "lens": _lens(found),
        "layers": _layers(found),
        "heads": _heads(found),
        "norms": _norms(found),
    }
    drawings = {name: render.chart(chart) for name, chart in charts.items() if chart is not None}
    return made | {name: one for name, one in drawings.items() if one is not None}


def _states(joined: tuple[tuple[str, str], ...]) -> list[list[str]]:
    """The symbols of a piece after each merge: the merges are undone from the last, then made again."""
    now = ["".join(joined[-1])]
    for pair in reversed(joined):
        now = [part for one in now for part in (pair if one == "".join(pair) else (one,))]
    states = [now]
    for pair in joined:
        states.append(replaced(states[-1], pair, "".join(pair)))
    return states


def _next(found: Explanation) -> Chart:
    groups = [one.text for one in found.next]
    return Bars(
        "The next token",
        Axis("chance", low=0),
        "token",
        groups,
        [Bar("", [n.probability for n in found.next])],
    )


def _lens(found: Explanation) -> Chart:
    layers = list(range(len(found.lens)))
    texts = [one.text for one in found.lens]
    labels = [text if n == 0 or texts[n - 1] != text else "" for n, text in enumerate(texts)]
    return Plot(
        f"The chance of “{found.attribution.text}”, if the model stopped after each block",
        Axis("blocks that have run"),
        Axis("chance", log=True),
        [Series("", layers, [one.final for one in found.lens], labels=labels, points=True)],
        note="A label is the likeliest token where it changes.",
    )


def _layers(found: Explanation) -> Chart:
    rows = found.attribution.layers
    at = list(range(len(rows)))
    series = [
        Series("attention", at, [one.attention for one in rows], points=True),
        Series("MLP", at, [one.mlp for one in rows], points=True),
    ]
    title = f"What each layer adds to the logit of “{found.attribution.text}”"
    return Plot(title, Axis("layer"), Axis("logit"), series, marks=[("nothing", 0.0)])


def _heads(found: Explanation) -> Chart | None:
    rows = found.attribution.heads
    if not rows:
        return None
    groups = [f"{one.layer}.{one.head}" for one in rows]
    title = f"The heads that add most to the logit of “{found.attribution.text}”"
    return Bars(title, Axis("logit"), "head", groups, [Bar("", [one.contribution for one in rows])])


def _norms(found: Explanation) -> Chart:
    at = list(range(len(found.stages)))
    faint = len(found.tokens) > NAMED
    series = [
        Series(token.text, at, list(row), faint=faint, color=0 if faint else None)
        for token, row in zip(found.tokens[:LINES], found.norms, strict=False)
    ]
    title = "The length of each token's residual stream"
    note = f"The first {LINES} of {len(found.tokens)} tokens." if len(found.tokens) > LINES else ""
    return Plot(title, Axis("stage"), Axis("norm", log=True), series, note=note)
