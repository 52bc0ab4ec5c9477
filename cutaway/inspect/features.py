"""Features of a sparse autoencoder: where they are active, what they promote, what they go along with.

    scan = Scan(made, data, [17, 40])                  one pass over an activation dataset
    scan.examples(17)                                  texts at quantiles of its activation
    effects(lm, made, [17])                            tokens whose logits its direction raises and lowers
    labels(folder, made); set_label(folder, made, 17, "months")    names of the user's own

Texts whose number is a multiple of ``HELD`` are left out: labels are judged on those (``feature_labels.py``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cutaway.errors import UserError, quoted
from cutaway.inspect.activations import AGAINST, Activations
from cutaway.inspect.arrays import largest
from cutaway.inspect.promoted import promoted
from cutaway.inspect.sae import SAE
from cutaway.store import files
from cutaway.store.reading import parsed

LABELS, LONGEST = "labels.json", 200  # characters of a label
HELD = 5  # one text in so many is not shown
MOST, CHUNK, KEPT = (
    1 << 17,
    2048,
    8,
)  # tokens that are scanned, at a time; tokens of each feature that are kept
BEFORE, AFTER = 14, 6  # tokens around the one that an example is of
QUANTILES = (("strongest", 1.0), ("at the 90th percentile", 0.9), ("at the median", 0.5), ("weak", 0.1))
EACH = 4  # examples of a quantile
BARS = 24  # of a histogram
NUMBERS = 8 << 20  # activations of features that are computed at a time


@dataclass(frozen=True)
class Example:
    """A token of the dataset in its context: ``ids``, each with the feature's activation; ``at`` is it."""

    row: int
    at: int
    ids: tuple[int, ...]
    activations: tuple[float, ...]

    @property
    def strength(self) -> float:
        """The activation at the token."""
        return self.activations[self.at]


class Scan:
    """One pass over a dataset: how often each feature fires, and all activations of some.

    ``often`` [f]: the fraction of tokens; ``most`` [f]: the largest activation; ``best`` [f KEPT]: the rows
    of the largest, -1 for none, and ``strongest`` those. Attention sinks that it was not trained on, and
    held-out texts, are not read.
    """

    def __init__(
        self,
        made: SAE,
        data: Activations,
        features: Sequence[int] = (),
        held: bool = False,
        progress: files.Progress = files.silent,
    ) -> None:
        for feature in features:
            made.check_feature(feature)
        missing = [name for name in made.reads if name not in data.names]
        if missing:
            more = "; --against gives the other model's" if missing[0].startswith(AGAINST) else ""
            raise UserError(
                f"the dataset has no {missing[0]}, which is read: it has {', '.join(data.names)}{more}"
            )
        self.made, self.data, self.features = made, data, tuple(dict.fromkeys(features))
        self.ids, self.documents, self.positions = data.token_ids, data.documents, data.positions
        usual = np.ones(len(data), bool)
        if not made.card.keep_sinks:
            usual = ~np.any([data.sinks(name) for name in made.reads], axis=0)
        tested = self.documents % HELD == 0
        if not held and not np.all(tested):
            usual &= ~tested
        elif held:
            usual &= tested
        self.rows = np.flatnonzero(usual)[:MOST]
        if not len(self.rows):
            raise UserError("the dataset has no tokens to read beside attention sinks and held-out texts")
        self._read(progress)

    def _read(self, progress: files.Progress) -> None:
        f, some = self.made.card.features, list(self.features)
        fired, self.most = np.zeros(f), np.zeros(f, np.float32)
        self.best = np.full((f, KEPT), -1)
        self.strongest = np.zeros((f, KEPT), np.float32)
        sums, squares, products = np.zeros(f), np.zeros(f), np.zeros((len(some), f))
        self.values = np.zeros((len(self.rows), len(some)), np.float32)
        at_once = max(32, min(CHUNK, NUMBERS // f))
        for start in range(0, len(self.rows), at_once):
            rows = self.rows[start : start + at_once]
            found = self.encoded(rows)
            fired += (found > 0).sum(0)
            self.most = np.maximum(self.most, found.max(0))
            both = np.concatenate([self.strongest, found.T], 1)
            of_rows = np.concatenate([self.best, np.broadcast_to(rows, found.T.shape)], 1)
            top = largest(both, KEPT)
            self.strongest, self.best = (np.take_along_axis(each, top, 1) for each in (both, of_rows))
            own = found[:, some]
            self.values[start : start + at_once] = own
            sums += found.sum(0, dtype=np.float64)
            squares += np.square(found).sum(0, dtype=np.float64)
            products += own.T.astype(np.float64) @ found
            progress("tokens", start + len(rows), len(self.rows))
        self.best[self.strongest <= 0] = -1
        n = len(self.rows)
        self.often = fired / n
        mean, spread = sums / n, np.sqrt(np.maximum(squares / n - np.square(sums / n), 0))
        around = products / n - mean[some, None] * mean
        scale = spread[some, None] * spread
        self._correlations = np.divide(around, scale, out=np.zeros_like(around), where=scale > 0)

    def encoded(self, rows: np.ndarray) -> np.ndarray:
        """The features [n f] of rows of the dataset."""
        return self.made.encode(
            self.made.rows({name: self.data.rows(name, rows) for name in self.made.reads})
        )

    def histogram(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """How many tokens have activations in each bin [BARS], and the bins' middles; of those above 0."""
        values = self._of(feature)
        counts, edges = np.histogram(values[values > 0], BARS)
        return counts, (edges[1:] + edges[:-1]) / 2

    def correlates(self, feature: int, count: int = 5) -> list[tuple[int, float]]:
        """The features whose activations correlate most with this one's, by Pearson's r."""
        found = self._correlations[self.features.index(feature)].copy()
        found[feature] = -np.inf
        best = largest(found[None], count)[0]
        return [(int(one), float(found[one])) for one in best if found[one] > 0]

    def examples(self, feature: int) -> dict[str, list[Example]]:
        """Tokens at quantiles of the feature's activation where it fires, the nearest of different texts."""
        values = self._of(feature)
        order = np.flatnonzero(values > 0)
        order = order[np.argsort(values[order], kind="stable")]
        found: dict[str, list[Example]] = {}
        seen: set[int] = set()
        for name, quantile in QUANTILES:
            if quantile == 1.0:
                near = order[::-1]
            else:
                middle = round(quantile * (len(order) - 1))
                near = order[np.argsort(np.abs(np.arange(len(order)) - middle), kind="stable")]
            chosen = []
            for one in near[: 50 * EACH].tolist():
                document = int(self.documents[self.rows[one]])
                if document not in seen and len(chosen) < EACH:
                    seen.add(document)
                    chosen.append(self.example(feature, int(self.rows[one])))
            if chosen:
                found[name] = chosen
        return found

    def example(self, feature: int, row: int) -> Example:
        """A row of the dataset in its context."""
        first, last = self.window(row)
        window = np.arange(first, last)
        values = self.encoded(window)[:, feature]
        ids = tuple(self.ids[window].tolist())
        return Example(row, row - first, ids, tuple(values.tolist()))

    def window(self, row: int) -> tuple[int, int]:
        """The rows of the context of a row: from one up to another."""
        first = row - min(BEFORE, int(self.positions[row]))
        last = row + 1
        while (
            last < len(self.ids)
            and last <= row + AFTER
            and self.documents[last] == self.documents[row]
            and self.positions[last] == self.positions[last - 1] + 1
        ):
            last += 1
        return first, last

    def _of(self, feature: int) -> np.ndarray:
        if feature not in self.features:
            raise UserError(f"feature {feature} was not scanned: name it when the scan is made")
        return self.values[:, self.features.index(feature)]


@dataclass(frozen=True)
class Effects:
    """Tokens whose logits a direction raises and lowers most, with the size of either."""

    raised: tuple[tuple[int, float], ...]
    lowered: tuple[tuple[int, float], ...]


def effects(lm: Any, made: SAE, features: Sequence[int], count: int = 8) -> list[Effects]:
    """The direct effect of features on logits, for an activation of 1, but for the final norm's size.

    Of several activations that are written the last one counts. UserError where that is no vector of the
    residual stream.
    """
    directions = made.decoder(made.writes[-1])[list(features)]
    if directions.shape[1] != lm.config.width:
        raise UserError(f"{made.writes[-1]} is no vector of the residual stream: it has no effect on logits")
    sides = promoted(lm.subject.engine, directions, len(lm.tokenizer), count)
    return [
        Effects(*(tuple(zip(ids[n].tolist(), scores[n].tolist(), strict=True)) for ids, scores in sides))
        for n in range(len(directions))
    ]


def labels(folder: Path, made: SAE) -> dict[int, str]:
    """The labels that the user gave features of a folder's dictionary."""
    if not (folder / LABELS).is_file():
        return {}
    found = parsed(folder / LABELS)
    for key, text in found.items():
        if not key.isdecimal() or not isinstance(text, str) or len(text) > LONGEST:
            raise UserError(f"{folder / LABELS}: {quoted(key)} is no feature's number with a label of text")
        if int(key) >= made.card.features:
            raise UserError(
                f"{folder / LABELS}: there is no feature {key}: they are 0 to {made.card.features - 1}; "
                "remove the file if it is of another training"
            )
    return {int(key): text for key, text in found.items()}


def set_label(folder: Path, made: SAE, feature: int, text: str) -> None:
    """Keeps a label; an empty one removes it."""
    if len(text) > LONGEST:
        raise UserError(f"a label of {len(text)} characters: at most {LONGEST} are kept")
    kept = labels(folder, made) | {feature: " ".join(text.split())}
    kept = {one: label for one, label in sorted(kept.items()) if label}
    files.write_file(folder / LABELS, json.dumps({str(one): label for one, label in kept.items()}, indent=1))
