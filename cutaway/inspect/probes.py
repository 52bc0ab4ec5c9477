"""Linear probes: what an activation tells of a label, by logistic regression (1610.01644; scikit-learn).

found = probe(lm, texts, labels)                        # [activation] accuracy on held-out texts
found = probe(lm, texts, labels, positions=[3, -1])     # [activation position]
found.margin, found.facts["selectivity"]                # half of 95% intervals; accuracy less the control's
found.facts["directions"]                               # of two labels: edits along each probe's direction

The control task (1909.03368) gives each token a random label, as frequent as the real ones. Its accuracy is
what a probe reaches by memorising tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cutaway.errors import UserError
from cutaway.extras import need
from cutaway.inspect.edits import Add
from cutaway.inspect.result import Result, margin
from cutaway.inspect.subject import Subject, subject_of
from cutaway.inspect.trace import trace_texts
from cutaway.store.files import Progress, silent


def probe(
    lm: Any,
    texts: Sequence[Any],
    labels: Sequence[Any],
    names: Sequence[str] | None = None,
    position: int = -1,
    folds: int = 5,
    *,
    positions: Sequence[int] | None = None,
    test: tuple[Sequence[Any], Sequence[Any]] | None = None,
    control: bool = True,
    seed: int = 0,
    progress: Progress = silent,
) -> Result:
    """The accuracy [activation] of a probe of each activation at a position, or [activation position].

    Each text is held out once, in one of ``folds``; with ``test`` texts and labels the probe is trained on
    all others and scored on these. ``names`` None: each layer's residual stream. ``chance`` is the commonest
    label's part. Raises UserError for fewer texts of a label than folds.
    """
    need("a linear probe", "sklearn")
    kinds, counts = np.unique(np.asarray(labels), return_counts=True)
    if folds < 2:
        raise UserError(f"folds is {folds}: it goes from 2")
    if len(texts) != len(labels) or len(kinds) < 2 or counts.min() < folds:
        raise UserError(
            f"a probe of {folds} folds needs a label a text, and {folds} texts or more of each of two labels"
        )
    subject = subject_of(lm)
    names = names or [f"blocks.{i}.out" for i in range(len(subject.config.blocks))]
    train = _read(subject, texts, labels, names, progress)
    held_out = None if test is None else _tested(subject, test, kinds, names, progress)
    at = [position] if positions is None else list(positions)
    _check_positions(at, [*train.ids, *(held_out.ids if held_out else ())])
    random = np.random.default_rng(seed)
    names, directions = list(train.traces[0]), {}
    values, margins, controls = (np.zeros((len(names), len(at))) for _ in range(3))
    for j, p in enumerate(at):
        units = _units(train.ids, p, folds)
        drawn = {unit: random.permutation(train.labels)[0] for unit in dict.fromkeys(units)}
        for i, one in enumerate(names):
            x = train.traces.at(one, p).reshape(len(texts), -1)
            right = _held_out(x, train.labels, folds)
            if held_out is not None:
                model = _model().fit(x, train.labels)
                other = held_out.traces.at(one, p).reshape(len(held_out.labels), -1)
                right = model.predict(other) == held_out.labels
            values[i, j], margins[i, j] = right.mean(), margin(right)
            if control:
                controls[i, j] = _held_out(x, np.array([drawn[unit] for unit in units]), folds).mean()
            if len(kinds) == 2 and p == at[-1]:
                directions[one] = _direction(one, x, train.labels)
    facts = {"chance": float(counts.max() / counts.sum()), "directions": directions}
    shape = (lambda of: of[:, 0]) if positions is None else (lambda of: of)
    facts |= {"control": shape(controls), "selectivity": shape(values - controls)} if control else {}
    axes = {"activation": names} | ({} if positions is None else {"position": at})
    return Result(shape(values), axes, "probes", facts, shape(margins))


def _check_positions(at: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
    """UserError for no position, and for one that a text does not have."""
    if not at:
        raise UserError("positions is empty: name at least one, or leave it out for the last")
    shortest = min(map(len, ids))
    if wrong := next((one for one in at if not -shortest <= one < shortest), None):
        raise UserError(
            f"there is no position {wrong} in every text: the shortest has {shortest} tokens, from 0"
        )


class Read(NamedTuple):
    """Texts as ids, their labels, and their activations."""

    ids: list[list[int]]
    labels: np.ndarray
    traces: Any


def _read(
    subject: Subject, texts: Sequence[Any], labels: Sequence[Any], names: Sequence[str], progress: Progress
) -> Read:
    ids = [subject.encode(text) for text in texts]
    return Read(ids, np.asarray(labels), trace_texts(subject, ids, names, (), progress))


def _tested(
    subject: Subject,
    test: tuple[Sequence[Any], Sequence[Any]],
    kinds: np.ndarray,
    names: Sequence[str],
    progress: Progress,
) -> Read:
    """The texts that are tested on; UserError for labels that no text of the others has."""
    texts, labels = test
    if not len(texts) or len(texts) != len(labels):
        raise UserError(f"test is texts and as many labels: these are {len(texts)} and {len(labels)}")
    if unknown := set(np.asarray(labels).tolist()) - set(kinds.tolist()):
        raise UserError(f"test has the label {min(map(str, unknown))!r:.40}, which no text to train on has")
    return _read(subject, texts, labels, names, progress)


def _units(ids: Sequence[Sequence[int]], position: int, folds: int) -> list[Any]:
    """What the control task gives labels to: tokens at the position; where these are too few, whole texts."""
    tokens = [one[position] for one in ids]
    return tokens if len(set(tokens)) >= 2 * folds else [tuple(one) for one in ids]


def _model() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def _held_out(x: np.ndarray, labels: np.ndarray, folds: int) -> np.ndarray:
    """bool [n]: whether each text's label is right, by a probe that was trained without it."""
    from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict

    kinds, counts = np.unique(labels, return_counts=True)
    if len(kinds) < 2:
        return np.ones(len(labels), bool)
    by = StratifiedKFold if counts.min() >= folds else KFold
    cut = by(folds, shuffle=True, random_state=0)
    return cross_val_predict(_model(), x, labels, cv=cut) == labels


def _direction(name: str, x: np.ndarray, labels: np.ndarray) -> Add:
    """The edit along a probe's direction, towards the second label, at norm 1."""
    scaler, regression = _model().fit(x, labels).named_steps.values()
    direction = regression.coef_[0] / scaler.scale_
    return Add(name=name, vector=(direction / np.linalg.norm(direction)).tolist())
