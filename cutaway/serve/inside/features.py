"""/v1/features: a token's strongest features by the dictionaries of --features, and what one feature is.

A feature is a direction that a model's activations are made of (docs/features.md). ``direction`` of a card is
where an edit acts: with "kind": "add" it adds the feature, with "kind": "project" it takes it out.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field, StrictInt
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.generate.batch.observation import Observation
from cutaway.inspect import features as of_features
from cutaway.inspect.dictionaries import Dictionary
from cutaway.inspect.edits import to_json
from cutaway.serve.api_error import APIError, errors_in
from cutaway.serve.inside.forward import Forward, InsideRequest, position_of, prepared, run, text_of
from cutaway.serve.json_body import json_response
from cutaway.serve.routes import Route, cancellable, computed
from cutaway.serve.service import Service
from cutaway.serve.validation import Id, StrictModel, Text


class FeaturesRequest(InsideRequest):
    """The strongest features of a position, by each dictionary that the server has (--features)."""

    position: StrictInt = -1
    top: Annotated[StrictInt, Field(ge=1, le=50)] = 5


class FeatureRequest(StrictModel):
    """A feature: the number of its dictionary in the answers of /v1/features, and its own."""

    model: Text | None = None
    dictionary: Id
    feature: Id


@cancellable
async def features(service: Service, body: FeaturesRequest, http: HTTPRequest) -> Response:
    """The strongest features of a token by each dictionary of the server: labels, activations, densities."""
    prompt = await prepared(service, body, http, adapters=True)
    at = position_of(body.position, len(prompt.ids))
    names = dict.fromkeys(name for one in service.dictionaries for name in one.made.reads)
    seen = Observation([*names], [at])
    if names:
        await run(service, http, [Forward(prompt, seen)])
    return await service.run_alone(http, _strongest, body, at, prompt.ids[at], seen)


def _strongest(service: Service, body: FeaturesRequest, at: int, id: int, seen: Observation) -> Response:
    """The features of one position's activations, the strongest of each dictionary first."""
    values = {name: np.stack(rows) for name, rows in seen.rows.items()}
    found = []
    for n, one in enumerate(service.dictionaries):
        card, row = one.made.card, one.made.rows(values)
        found.append({
            "dictionary": n,
            "layer": one.made.layer,
            "kind": card.kind,
            "reads": card.reads,
            "writes": card.writes,
            "size": card.features,
            "sink": bool(one.made.sinks_at(row, np.array([at]))[0]),
            "features": [
                {"feature": feature, "activation": activation, **_known(one, feature)}
                for feature, activation in one.made.top(row, body.top)[0]
            ],
        })  # fmt: skip
    token = {"id": id, "text": text_of(service, id)}
    return json_response({"model": service.name, "position": at, "token": token, "dictionaries": found})


def _known(one: Dictionary, feature: int) -> dict[str, Any]:
    """What is kept of a feature: its label, on which part of the tokens it fires, its largest activation."""
    kept = one.contexts
    often, most = (None, None) if kept is None else (float(kept.often[feature]), float(kept.most[feature]))
    return {"label": one.labels.get(feature), "density": often, "largest": most}


def card(service: Service, body: FeatureRequest, http: HTTPRequest) -> Response:
    """What a feature is: its label, texts, effect on logits, and the direction by which it is edited."""
    if body.dictionary >= len(service.dictionaries):
        count = len(service.dictionaries)
        known = f"they are 0 to {count - 1}" if count else "start the server with --features FOLDER"
        raise APIError(400, f"There is no dictionary {body.dictionary}: {known}", param="dictionary")
    one = service.dictionaries[body.dictionary]
    with errors_in("feature"):
        one.made.check_feature(body.feature)
    raised = lowered = None
    if one.made.decoder(one.made.writes[-1]).shape[1] == service.lm.config.width:
        (effect,) = of_features.effects(service.lm, one.made, [body.feature])
        raised, lowered = (_tokens(service, side) for side in (effect.raised, effect.lowered))
    direction = None
    if len(one.made.writes) == 1:
        edit = to_json(one.made.add(body.feature))
        direction = {name: edit[name] for name in ("layer", "name", "vector") if edit[name] is not None}
    texts = []
    for ids, at, strength in one.contexts.of(body.feature) if one.contexts else ():
        texts.append({"tokens": [text_of(service, id) for id in ids], "at": at, "activation": strength})
    return json_response({
        "model": service.name, "dictionary": body.dictionary, "feature": body.feature,
        **_known(one, body.feature), "texts": texts, "raises": raised, "lowers": lowered,
        "direction": direction,
    })  # fmt: skip


def _tokens(service: Service, side: Any) -> list[dict[str, Any]]:
    return [{"id": id, "text": text_of(service, id), "logit": value} for id, value in side]


NEEDS = ("internals",)
ROUTES = [
    Route("POST", "/v1/features", NEEDS, features, FeaturesRequest, computes=True),
    Route("POST", "/v1/features/card", NEEDS, computed(card), FeatureRequest, computes=True),
]
