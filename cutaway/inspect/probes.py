"""Linear probes: what an activation tells of a label, by logistic regression (1610.01644; scikit-learn).

found = probe(lm, texts, labels)            # [layer] accuracy on held-out texts
found.facts["directions"]                   # of two labels: edits along each probe's direction
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect.edits import Add
from cutaway.inspect.optional import library
from cutaway.inspect.result import Result
from cutaway.inspect.subject import subject_of
from cutaway.inspect.trace import trace_texts
from cutaway.store.files import Progress, silent


def probe(
    lm: Any,
    texts: Sequence[Any],
    labels: Sequence[Any],
    names: Sequence[str] | None = None,
    position: int = -1,
    folds: int = 5,
    progress: Progress = silent,
) -> Result:
    """The accuracy [activation] of a probe of each activation at a position.

    ``names`` None: each layer's residual stream. ``chance`` is the commonest label's part. Raises UserError
    for fewer texts of a label than folds.
    """
    library("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kinds, counts = np.unique(np.asarray(labels), return_counts=True)
    if len(texts) != len(labels) or len(kinds) < 2 or counts.min() < folds:
        raise UserError(
            f"a probe of {folds} folds needs a label a text, and {folds} texts or more of each of two labels"
        )
    subject = subject_of(lm)
    names = names or [f"blocks.{i}.out" for i in range(len(subject.config.blocks))]
    traces = trace_texts(subject, [subject.encode(text) for text in texts], names, (), progress)
    names, values, directions = list(traces[0]), [], {}
    for one in names:
        x = traces.at(one, position).reshape(len(texts), -1)
        scaler, regression = StandardScaler(), LogisticRegression(max_iter=1000)
        model = make_pipeline(scaler, regression)
        cut = StratifiedKFold(folds, shuffle=True, random_state=0)
        values.append(float(np.mean(cross_val_score(model, x, labels, cv=cut))))
        if len(kinds) == 2:
            model.fit(x, labels)
            direction = regression.coef_[0] / scaler.scale_
            directions[one] = Add(name=one, vector=(direction / np.linalg.norm(direction)).tolist())
    facts = {"chance": float(counts.max() / counts.sum()), "directions": directions}
    return Result(np.array(values), {"activation": names}, "probes", facts)
