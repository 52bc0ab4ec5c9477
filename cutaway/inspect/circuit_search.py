"""Search for a circuit: the heads and MLPs that alone keep a metric, all others as in another text.

    found = search(lm, texts, others, answers=answers, threshold=0.02)
    found.circuit, found.faithfulness            # ((18, 6), (5, None), ...), 0 to 1
    curves(lm, texts, others, answers=answers)   # by size, beside random circuits

From the last part to the first, a part is left out where the metric loses no more than ``threshold`` by it,
as in ACDC (2304.14997), with parts in place of edges. A part that is left out has the other text's output at
every token (resample ablation).

    faithfulness    the part of the metric's difference that the circuit alone keeps; all parts keep 1
    completeness    what is left of it without the circuit; 0 says that nothing outside does the task
    minimality      what the circuit loses without one of its parts

All are means over pairs of texts, with intervals.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.inputs import has_pattern
from cutaway.inspect.pairs import Answers, Pairs, pairs
from cutaway.inspect.patching import Study, activation
from cutaway.inspect.result import Result, margin
from cutaway.inspect.subject import Metric, Subject, subject_of
from cutaway.inspect.sweep_cells import Cell, Setting
from cutaway.store.files import Progress, silent

Part = tuple[int, int | None]  # a layer and a head; None: its MLP
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
DRAWS = 5  # random circuits of each size


@dataclass(frozen=True)
class Found:
    """A circuit, its parts by layer. ``minimality``: by how much faithfulness falls without each part.

    Figures are means over pairs; ``margins`` are halves of the 95% intervals of the first two.
    """

    circuit: tuple[Part, ...]
    faithfulness: float
    completeness: float
    margins: tuple[float, float]
    minimality: tuple[float, ...]
    parts: int


class Parts(Study):
    """Pairs of texts whose parts can be given the other text's output."""

    def __init__(self, subject: Subject, found: Pairs) -> None:
        self.every, self.sites = _parts(subject)
        super().__init__(subject, found, list(dict.fromkeys(self.sites.values())))
        self.theirs = self.values([one.other for one in found.each])

    def kept(self, circuits: Sequence[Collection[Part]]) -> np.ndarray:
        """float64 [circuits pairs]: the faithfulness of circuits, all other parts left out."""
        cells, where = [], []
        for c, circuit in enumerate(circuits):
            out = [part for part in self.every if part not in circuit]
            for n in range(len(self.found.each)):
                if out:
                    cells.append(Cell(n, [self._setting(n, part) for part in out]))
                    where.append((c, n))
        values = np.ones((len(circuits), len(self.found.each)))
        for some in self.sweep.batches(cells):
            for n, effect in zip(some, self._read([cells[n] for n in some]), strict=True):
                values[where[n]] = 1 - effect
        return values

    def _setting(self, n: int, part: Part) -> Setting:
        name, head = self.sites[part], part[1]
        rows = self.theirs[n][name] if head is None else self.theirs[n][name][head]
        return Setting(name, rows, range(rows.shape[-2]), head)


def search(
    lm: Any,
    text: Any,
    other: Any,
    *,
    answers: Answers | Sequence[Answers] | None = None,
    metric: Metric | None = None,
    threshold: float = 0.02,
    progress: Progress = silent,
) -> Found:
    """A circuit of one pair of texts, or of lists of them. ``threshold``: of the metric's difference.

    Raises UserError for a threshold that is no part of it.
    """
    if not 0 <= threshold < 1:
        raise UserError(
            f"threshold is {threshold}: give a part of the metric's difference, 0 or more, below 1"
        )
    subject = subject_of(lm)
    study = Parts(subject, pairs(lm, text, other, answers, metric))
    circuit, now = set(study.every), 1.0
    for done, part in enumerate(reversed(study.every)):
        without = float(study.kept([circuit - {part}]).mean())
        if now - without <= threshold:
            circuit, now = circuit - {part}, without
        progress("searching", done + 1, len(study.every))
    own = [part for part in study.every if part in circuit]
    outside = [part for part in study.every if part not in circuit]
    values = study.kept([own, outside, *(circuit - {part} for part in own)])
    means = values.mean(-1)
    return Found(
        tuple(own),
        *(float(means[0]), float(means[1])),
        (margin(values[0]), margin(values[1])),
        tuple((means[0] - means[2:]).tolist()),
        len(study.every),
    )


def curves(
    lm: Any,
    text: Any,
    other: Any,
    *,
    answers: Answers | Sequence[Answers] | None = None,
    metric: Metric | None = None,
    order: Sequence[Part] | None = None,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
) -> Result:
    """[kind size]: faithfulness and completeness of the first parts of an ``order``, and of random circuits.

    Without an order parts are ordered by what each alone loses. Random ones are means of five of each size.
    """
    study = Parts(subject_of(lm), pairs(lm, text, other, answers, metric))
    every = set(study.every)
    if order is None:
        losses = 1 - study.kept([every - {part} for part in study.every]).mean(-1)
        order = [study.every[n] for n in np.argsort(-losses, kind="stable")]
    if unknown := next((part for part in order if part not in every), None):
        raise UserError(f"there is no part {unknown}: a part is a layer and a head, or a layer and None")
    if len(set(order)) < len(order):
        raise UserError("a part is in the order twice: name each once")
    draw, few = np.random.default_rng(seed), min(sizes, default=0)
    sizes = [size for size in sizes if size <= len(order)]
    if few < 1 or not sizes:
        raise UserError(f"sizes go from 1 to the parts in the order, {len(order)}")
    kinds = ("faithfulness", "completeness", "random faithfulness", "random completeness")
    values, margins = np.zeros((4, len(sizes))), np.zeros((4, len(sizes)))
    for at, size in enumerate(sizes):
        chosen = [set(order[:size])]
        for _ in range(DRAWS):
            chosen.append({study.every[n] for n in draw.choice(len(study.every), size, replace=False)})
        found = study.kept([*chosen, *(every - one for one in chosen)]).reshape(2, 1 + DRAWS, -1)
        for kind, rows in enumerate((found[0, 0], found[1, 0], found[0, 1:].mean(0), found[1, 1:].mean(0))):
            values[kind, at], margins[kind, at] = rows.mean(), margin(rows)
    facts = study.found.facts | {"parts": len(study.every), "pairs": len(study.found.each), "draws": DRAWS}
    return Result(values, {"kind": kinds, "parts": sizes}, "circuits by size", facts, margins)


def _parts(subject: Subject) -> tuple[list[Part], dict[Part, str]]:
    """Each head and MLP in the order of computation, and the activation in which it is set."""
    sites: dict[Part, str] = {}
    for i, block in enumerate(subject.config.blocks):
        of: Any = block.attention
        if not has_pattern(of):
            raise UserError(f"a circuit is of heads and MLPs, and layer {i} is recurrent")
        sites |= {(i, head): activation(subject, "heads", i) for head in range(of.heads)}
        if block.mlp is not None:
            sites[i, None] = activation(subject, "mlp", i)
    return list(sites), sites
