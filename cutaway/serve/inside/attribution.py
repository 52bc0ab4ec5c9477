"""/v1/attribution: why a token: its logit as the exact sum of what heads and MLPs wrote, then a causal check.

The sum is the parts' direct effect. The check ablates the parts that wrote most for the token, at its
position alone, and as many parts of the same kinds that are drawn by chance, all in one batch: if the sum
were bookkeeping alone, both would change the token's probability alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, StrictInt
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.errors import UserError
from cutaway.generate.batch.observation import LOOKS, Observation
from cutaway.inspect import neurons
from cutaway.inspect.arrays import largest, softmax
from cutaway.inspect.attribution import Attribution, attribute
from cutaway.inspect.edits import Ablate
from cutaway.inspect.inputs import attribution_names, output_heads
from cutaway.layers.config import MLP
from cutaway.serve.api_error import APIError, errors_in
from cutaway.serve.inside.forward import (
    Forward,
    InsideRequest,
    Prompt,
    of_layers,
    patterns,
    position_of,
    prepared,
    run,
    text_of,
)
from cutaway.serve.json_body import json_response
from cutaway.serve.operations.request_record import client_of
from cutaway.serve.routes import Route, cancellable
from cutaway.serve.service import Service
from cutaway.serve.validation import Id

WRITERS, NEURONS, ATTENDED = 12, 3, 3  # parts that are listed, and of each its neurons or positions
UNUSED = ("q", "k", "v", "pattern", "chosen")  # a head's part is split over keys by them
Part = tuple[int, int | None]  # a layer, and its head or None for its MLP


class AttributionRequest(InsideRequest):
    """Why this token: the parts of its logit at a position, and a causal check of the largest."""

    position: StrictInt = -1
    token: Id | None = Field(None, description="Left out: the likeliest.")
    against: Id | None = Field(None, description="The parts are then those of the difference of two logits.")
    check: Annotated[StrictInt, Field(ge=0, le=16)] = Field(
        4, description="How many of the largest parts are ablated in the causal check; 0: none is made."
    )
    samples: Annotated[StrictInt, Field(ge=1, le=16)] = Field(
        4, description="Sets of parts, drawn by chance, that are ablated beside."
    )
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0


@cancellable
async def attribution(service: Service, body: AttributionRequest, http: HTTPRequest) -> Response:
    """Why a token: the exact sum of its logit by head and MLP, and a causal check against random parts."""
    prompt, client = await prepared(service, body, http), client_of(http)
    at = position_of(body.position, len(prompt.ids))
    prompt = Prompt(prompt.ids[: at + 1], prompt.edits)  # what follows changes nothing there
    seen = Observation(_names(service), [at])
    await run(service, http, [Forward(prompt, seen)])
    found, facts = await service.run_alone(http, _attributed, body, prompt, seen)
    check = None
    if body.check:
        sets = _sets(service, body, found)
        passes = [Forward(prompt.under(_ablated(parts, at)), Observation((), ())) for parts in sets]
        await run(service, http, passes)
        logits = [one.seen.logits for one in passes]
        check = await service.run(client, lambda _: _checked(service, found.token, sets, logits))
    return await service.run(client, lambda _: json_response(facts | {"check": check}))


def _names(service: Service) -> list[str]:
    """The values of one position that the sum needs, with attention weights and neurons to name."""
    config = service.lm.config
    with errors_in("model"):
        asked = [name for name in attribution_names(config) if name.rpartition(".")[2] not in UNUSED]
    asked = [name for name in asked if "*" not in name and name != "logits"]
    dense = [f"blocks.{i}.mlp.hidden" for i, one in enumerate(config.blocks) if isinstance(one.mlp, MLP)]
    return [*dict.fromkeys([*asked, *of_layers(service, "middle", "out"), *patterns(service), *dense])]


def _attributed(
    service: Service, body: AttributionRequest, prompt: Prompt, seen: Observation
) -> tuple[Attribution, dict[str, Any]]:
    """The parts, and what the answer says of them."""
    assert seen.logits is not None
    vocabulary = len(service.lm.tokenizer)
    chances = softmax(seen.logits[:vocabulary].astype(np.float64))
    token = int(chances.argmax()) if body.token is None else body.token
    for name, id in (("token", token), ("against", body.against or 0)):
        if id >= vocabulary:
            text = f"{name} is {id}, and this model's vocabulary has {vocabulary:,} tokens"
            raise APIError(400, text, param=name)
    values = {name: _array(name, rows) for name, rows in seen.rows.items()} | {"logits": seen.logits[None]}
    engine = service.lm.subject.choose([*seen.names])[0]
    try:
        found = attribute(engine, values, token, -1, body.against, sources=False)
    except UserError as error:
        raise APIError(400, str(error), param="against" if body.against is not None else None) from None
    listed = [_writer(engine, values, found, part) for part in ranked(found)[:WRITERS]]
    return found, {
        "model": service.name,
        "position": len(prompt.ids) - 1,
        "token": {"id": token, "text": text_of(service, token), "probability": float(chances[token])},
        "against": body.against,
        "logit": found.logit,
        "embed": found.embed,
        "biases": found.biases,
        "rest": found.rest,
        "heads": [own.tolist() for own in found.heads],
        "mlps": found.mlps.tolist(),
        "writers": listed,
    }


def _array(name: str, rows: Sequence[np.ndarray]) -> np.ndarray:
    """The only position's value as a trace has it: heads, then positions."""
    whole = np.stack(rows)
    return whole if whole.ndim == 2 or name.endswith(LOOKS) else whole.swapaxes(0, 1)


def part_of(found: Attribution, part: Part) -> float:
    """What a part wrote for the token, in logits."""
    layer, head = part
    return float(found.mlps[layer] if head is None else found.heads[layer][head])


def ranked(found: Attribution) -> list[Part]:
    """All heads and MLPs, those that wrote most for or against the token first."""
    parts: list[Part] = [(i, head) for i, own in enumerate(found.heads) for head in range(len(own))]
    parts += [(i, None) for i in range(len(found.mlps))]
    return sorted(parts, key=lambda one: -abs(part_of(found, one)))


def _writer(engine: Any, values: dict[str, np.ndarray], found: Attribution, part: Part) -> dict[str, Any]:
    """A part as the answer lists it: where a head attends, which neurons of an MLP wrote most."""
    layer, head = part
    made = {"layer": layer, "head": head, "logits": part_of(found, part)}
    name = f"blocks.{layer}.attention.pattern"
    if head is not None:
        weights = values[name][0][head] if name in values else np.zeros(0)
        best = largest(weights[None], ATTENDED)[0].tolist() if len(weights) else []
        return made | {"attends_to": [{"position": at, "weight": float(weights[at])} for at in best]}
    hidden, block = values.get(f"blocks.{layer}.mlp.hidden"), engine.config.blocks[layer]
    if hidden is None or "mlp_post_norm" in block.norms:  # such a norm mixes its neurons
        return made | {"neurons": []}
    read = found.direction @ neurons.output_weights(engine, layer)
    parts = hidden[0] * read * block.residual
    best = largest(np.abs(parts)[None], NEURONS)[0].tolist()
    listed = [{"neuron": n, "logits": float(parts[n]), "activation": float(hidden[0, n])} for n in best]
    return made | {"neurons": listed}


def _sets(service: Service, body: AttributionRequest, found: Attribution) -> list[list[Part]]:
    """The parts that wrote most for the token, then sets of as many heads and MLPs, drawn of the others."""
    best = [part for part in ranked(found) if part_of(found, part) > 0][: body.check]
    draw = np.random.default_rng(body.seed)
    heads = [
        (i, head)
        for i, block in enumerate(service.lm.config.blocks)
        for head in range(output_heads(block.attention))
        if (i, head) not in best
    ]
    mlps: list[Part] = [(i, None) for i in range(len(found.mlps)) if (i, None) not in best]
    wanted = sum(head is None for _, head in best)
    few = min(wanted, len(mlps))  # of a model with few layers: heads make up the number
    made: list[list[Part]] = [best]
    for _ in range(body.samples):
        some = sorted(draw.choice(len(heads), min(len(best) - few, len(heads)), replace=False).tolist())
        others = sorted(draw.choice(len(mlps), few, replace=False).tolist()) if few else []
        made.append([*(heads[n] for n in some), *(mlps[n] for n in others)])
    return made


def _ablated(parts: Sequence[Part], at: int) -> list[Ablate]:
    """The edits that take parts out at one position."""
    return [Ablate(layer, "mlp" if head is None else "head", head, positions=[at]) for layer, head in parts]


def _checked(
    service: Service, token: int, sets: Sequence[Sequence[Part]], logits: Sequence[np.ndarray | None]
) -> dict[str, Any]:
    """The token's logit and probability without each set of parts."""
    rows = []
    for parts, one in zip(sets, logits, strict=True):
        assert one is not None
        own = one[: len(service.lm.tokenizer)].astype(np.float64)
        ablated = [{"layer": layer, "head": head} for layer, head in parts]
        rows.append(
            {"ablated": ablated, "logit": float(own[token]), "probability": float(softmax(own)[token])}
        )
    return {"writers": rows[0], "random": rows[1:]}


ROUTES = [Route("POST", "/v1/attribution", ("internals",), attribution, AttributionRequest, computes=True)]
