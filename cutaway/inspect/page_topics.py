"""Views that a page shows on request: a patch, an autoencoder's features, a training.

Each is a fact of the page's first explanation, and makes a view of its name.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from cutaway.inspect.explanation import Patch
from cutaway.inspect.promoted import promoted
from cutaway.inspect.trace_values import TraceValues

if TYPE_CHECKING:
    from cutaway.inspect.against import Against
    from cutaway.inspect.sae import SAE

TOPICS = ("patch", "features", "changed")
MAPPED = 24  # features that are drawn over all tokens
PROMOTED = 5


def patch(found: Patch) -> dict[str, Any]:
    """The view of activation patching: where the two answers part."""
    return asdict(found)


def changed(found: Against, names: tuple[str, str]) -> dict[str, Any]:
    """What training changed; ``names``: of the base and the tuned model."""
    return asdict(found) | {"names": list(names)}


def features(trace: TraceValues, sae: SAE) -> dict[str, Any]:
    """Each token's strongest features, and those of the largest activations over all tokens.

    The activations of attention sinks are left out of the choice: the autoencoder was not trained on them.
    ``promotes``: the tokens whose logits each mapped feature's direction raises most.
    """
    read = sae.rows({name: trace[name] for name in sae.reads})
    active, sinks = sae.encode(read), sae.sinks(read)
    most = np.where(sinks[:, None], 0, active).max(0)
    mapped = [int(id) for id in np.argsort(-most, kind="stable")[:MAPPED] if most[id] > 0]
    best = sae.top(read)
    directions = sae.decoder(sae.writes[-1])[mapped]
    written = len(mapped) and directions.shape[1] == trace.config.width  # into the residual stream
    ids = promoted(trace.instrumented, directions, trace.vocabulary, PROMOTED)[0].ids if written else ()
    return {
        "activation": sae.name,
        "count": sae.card.features,
        "sinks": np.flatnonzero(sinks).tolist(),
        "tokens": [[list(one) for one in row] for row in best],
        "mapped": mapped,
        "active": active[:, mapped].T.tolist(),
        "promotes": [[trace.token(id) for id in row.tolist()] for row in ids],
    }
