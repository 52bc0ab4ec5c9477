"""Direct logit attribution of several tokens, by head, by neuron or by the position that is attended to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from cutaway.errors import UserError
from cutaway.inspect import neurons
from cutaway.inspect.attribution import Attribution
from cutaway.inspect.inputs import attribution_names, neuron_names
from cutaway.inspect.pairs import token_id
from cutaway.inspect.result import Result
from cutaway.inspect.subject import subject_of
from cutaway.inspect.trace import trace_texts
from cutaway.inspect.trace_values import TraceValues

By = Literal["head", "neuron", "position"]


def logit_attribution(
    lm: Any,
    text: Any,
    tokens: Sequence[str | int],
    by: By = "head",
    position: int = -1,
    against: str | int | None = None,
) -> Result:
    """The parts of each token's logit at a position: [token layer head], or what ``by`` says for heads.

    "neuron": each neuron of the MLP. "position": all heads of a layer together, by the key that they attend
    to. With ``against`` the parts are those of the logit difference. Short rows end in NaN.
    """
    if by not in ("head", "neuron", "position"):
        raise UserError(f'by is {by!r}: use "head", "neuron" or "position"')
    if not len(tokens):
        raise UserError("logits are attributed of one token or more, and none is given")
    subject = subject_of(lm)
    kept = [*attribution_names(subject.config)]
    kept += neuron_names(subject.config) if by == "neuron" else []
    trace = trace_texts(subject, [subject.encode(text)], kept)[0]
    other = None if against is None else token_id(lm, against)
    found = [trace.attribution(token_id(lm, token), position, other) for token in tokens]
    rows = [_rows(trace, one, by) for one in found]
    widest = max(len(row) for layers in rows for row in layers)
    values = np.array(
        [[np.pad(row, (0, widest - len(row)), constant_values=np.nan) for row in one] for one in rows]
    )
    last = [f"{p} {token}" for p, token in enumerate(trace.tokens)] if by == "position" else range(widest)
    axes = {"token": [trace.token(one.token) for one in found], "layer": range(trace.layers), by: last}
    return Result(
        values, axes, f"logit attribution by {by}", {"logits": [round(one.logit, 4) for one in found]}
    )


def _rows(trace: TraceValues, found: Attribution, by: By) -> list[np.ndarray]:
    """Each layer's parts."""
    if by == "head":
        return list(found.heads)
    if by == "position":
        if any(sources is None for sources in found.sources):
            raise UserError("a recurrent layer attends to no position: attribute by head")
        return [sources.sum(0) for sources in found.sources if sources is not None]
    rows = []
    for i in range(trace.layers):
        block = trace.config.blocks[i]
        if "mlp_post_norm" in block.norms:
            raise UserError("a norm after the MLP mixes its neurons: attribute by head")
        read = found.direction @ neurons.output_weights(trace.instrumented, i)
        rows.append(neurons.activations(trace, i)[found.position] * read * block.residual)
    return rows
