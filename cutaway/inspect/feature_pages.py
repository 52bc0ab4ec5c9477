"""Pages of features in the page's look, and the same as Neuronpedia's JSON."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.inspect.features import Effects, Example, Scan
from cutaway.inspect.reports import TITLES
from cutaway.page import report
from cutaway.page.charts import Axis, Plot, Series, Table

LISTED = 200  # features in the table of a page
SHADES = 8  # of a token's background, by its activation


@dataclass(frozen=True)
class Judged:
    """How a label did: ``right`` of ``of`` pairs of held-out texts, its interval of 95%; chance is 1/2."""

    right: int
    of: int
    low: float
    high: float

    def __str__(self) -> str:
        interval = f"{self.right / self.of:.2f} ({self.low:.2f} to {self.high:.2f})"
        return f"{interval} of {self.of} pairs of held-out texts; chance is 0.50"


def page(
    scan: Scan,
    effects: Mapping[int, Effects],
    labels: Mapping[int, str],
    judged: Mapping[int, Judged],
    lm: Any,
) -> str:
    """One HTML file: the table of features, and each scanned feature with its texts."""
    made = scan.made
    name = f"{TITLES[made.card.kind]} of {made.name}"
    parts: list[report.Part] = [
        report.Text(
            f"Model: {Path(made.card.model).name}. {len(scan.rows):,} tokens were read, none of them an "
            "attention sink; one text in five is held out. The colour of a token is the feature's activation."
        ),
        Table("Features", COLUMNS, rows(scan, effects, labels, lm)[:LISTED]),
    ]
    for feature in scan.features:
        parts += _feature(scan, feature, effects.get(feature), labels.get(feature), judged.get(feature), lm)
    return report.html(name, parts)


COLUMNS = ["feature", "label", "fires on", "largest activation", "strongest at", "raises"]


def rows(
    scan: Scan, effects: Mapping[int, Effects], labels: Mapping[int, str], lm: Any
) -> list[list[str | float | None]]:
    """A line for each feature that fires: scanned and labelled ones first, then by how often."""
    first = dict.fromkeys((*scan.features, *labels))
    order = [*first, *(int(one) for one in np.argsort(-scan.often, kind="stable") if int(one) not in first)]
    out: list[list[str | float | None]] = []
    for one in order:
        if scan.often[one] > 0 or one in first:
            raised = effects[one].raised[:3] if one in effects else ()
            words = " ".join(repr(token(lm, id)) for id, _ in raised)
            often, most = float(scan.often[one]), float(scan.most[one])
            out.append([one, labels.get(one, ""), often, most, strongest(scan, one, lm), words])
    return out


def strongest(scan: Scan, feature: int, lm: Any, count: int = 4) -> str:
    """The different tokens at which a feature is strongest."""
    found = [row for row in scan.best[feature].tolist() if row >= 0]
    return " ".join(list(dict.fromkeys(repr(token(lm, int(scan.ids[row]))) for row in found))[:count])


def token(lm: Any, id: int) -> str:
    """A token's text."""
    return lm.tokenizer.token_bytes(id).decode(errors="backslashreplace")


def _feature(
    scan: Scan, feature: int, effects: Effects | None, label: str | None, judged: Judged | None, lm: Any
) -> list[report.Part]:
    often, most = float(scan.often[feature]), float(scan.most[feature])
    about = f"Fires on {often:.3%} of tokens; the largest activation is {most:.4g}."
    about += f" The label is right in {judged}." if judged else ""
    heading = f"Feature {feature}" + (f": {label}" if label else "")
    parts: list[report.Part] = [report.Html(f"<h2>{html.escape(heading)}</h2>"), report.Text(about)]
    for name, examples in scan.examples(feature).items():
        lines = "".join(_line(one, most, lm) for one in examples)
        parts.append(report.Html(f'<h3>{html.escape(name)}</h3><ul class="contexts">{lines}</ul>'))
    counts, middles = scan.histogram(feature)
    tables: list[Any] = [
        Plot(
            f"Activations of feature {feature}",
            Axis("activation"),
            Axis("tokens"),
            [Series("tokens", middles.tolist(), [float(count) for count in counts])],
            note="Tokens at which it fires.",
        )
    ]
    if effects:
        sides = zip(effects.raised, effects.lowered, strict=True)
        lines = [[token(lm, up), size, token(lm, down), less] for (up, size), (down, less) in sides]
        note = "For an activation of 1, but for the final norm's size."
        tables.append(Table("Effect on logits", ["raises", "by", "lowers", "by"], lines, note))
    near = [[one, round(r, 3), strongest(scan, one, lm)] for one, r in scan.correlates(feature)]
    tables.append(Table("Correlates", ["feature", "Pearson's r", "strongest at"], near))
    return [*parts, report.Grid(tables)]


def _line(one: Example, most: float, lm: Any) -> str:
    """A context as HTML: the token it is of is marked, each token coloured by its activation."""
    out = []
    for n, (id, value) in enumerate(zip(one.ids, one.activations, strict=True)):
        shade = min(SHADES, int(np.ceil(SHADES * value / most))) if value > 0 and most > 0 else 0
        text = html.escape(token(lm, id)).replace("\n", "&#8629;")
        own = f"<b>{text}</b>" if n == one.at else text
        out.append(f'<span class="shade{shade}" title="{value:.4g}">{own}</span>' if shade else own)
    return f"<li>{''.join(out)}</li>"


def neuronpedia(
    scan: Scan, effects: Mapping[int, Effects], labels: Mapping[int, str], lm: Any
) -> dict[str, Any]:
    """The scanned features as Neuronpedia's dashboards have them, to be uploaded as a source set."""
    made = scan.made
    return {
        "model_id": Path(made.card.model).stem,
        "layer": made.layer,
        "sae_set": made.card.kind,
        "features": [_dashboard(scan, one, effects.get(one), labels.get(one), lm) for one in scan.features],
    }


def _dashboard(
    scan: Scan, feature: int, effects: Effects | None, label: str | None, lm: Any
) -> dict[str, Any]:
    counts, middles = scan.histogram(feature)
    near = scan.correlates(feature)
    examples = [one for some in scan.examples(feature).values() for one in some]
    raised, lowered = (effects.raised, effects.lowered) if effects else ((), ())
    return {
        "feature_index": feature,
        "frac_nonzero": float(scan.often[feature]),
        "pos_str": [token(lm, id) for id, _ in raised],
        "pos_values": [size for _, size in raised],
        "neg_str": [token(lm, id) for id, _ in lowered],
        "neg_values": [size for _, size in lowered],
        "freq_hist_data_bar_heights": [int(count) for count in counts],
        "freq_hist_data_bar_values": [float(middle) for middle in middles],
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "correlated_features_indices": [one for one, _ in near],
        "correlated_features_pearson": [r for _, r in near],
        "n_prompts_total": len(np.unique(scan.documents[scan.rows])),
        "n_tokens_in_prompt": int(scan.positions.max()) + 1,
        "dataset": "",
        "activations": [
            {
                "tokens": [token(lm, id) for id in one.ids],
                "values": list(one.activations),
                "maxValue": max(one.activations),
                "maxValueTokenIndex": int(np.argmax(one.activations)),
            }
            for one in examples
        ],
        "explanations": [{"description": label}] if label else [],
    }


def found(lines: Sequence[Sequence[Any]], word: str) -> list[Sequence[Any]]:
    """The lines of ``rows`` in which a word is, in any case: a label, a token, a number."""
    return [line for line in lines if any(word.casefold() in str(cell).casefold() for cell in line)]
