"""/v1/runs...: the training runs of --runs: their curves and samples, and what checkpoints have learned."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from pydantic import Field, StrictInt
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.inspect import checkpoints, tokens
from cutaway.serve.api_error import APIError, errors_in
from cutaway.serve.json_body import json_response
from cutaway.serve.operations.models import CHECKPOINT
from cutaway.serve.routes import Route, beside, computed, models_of
from cutaway.serve.runs.folder import Runs
from cutaway.serve.runs.log import pooled
from cutaway.serve.service import Service
from cutaway.serve.validation import FailFast, StrictModel, Text
from cutaway.serve.work_pool import check_stopped, spend

Step = Annotated[StrictInt, Field(ge=0, lt=10**8)]
LONGEST = 256  # tokens of the sentence


class CurvesRequest(StrictModel):
    """Runs whose curves are asked for, and how many points each has at most."""

    runs: Annotated[list[Text], FailFast, Field(min_length=1, max_length=24)]
    points: Annotated[StrictInt, Field(ge=2, le=4096)] = 400


class SamplesRequest(StrictModel):
    """A run; ``first``: the step from which on its samples and answers are asked for."""

    run: Text
    first: Step = 0


class CheckpointRequest(StrictModel):
    """A checkpoint, and the sentence that it reads; its map is rotated onto that of ``reference``."""

    run: Text
    step: Step
    text: Text
    reference: Step | None = None


def _runs(http: HTTPRequest) -> Runs:
    found = models_of(http).runs
    if found is None:
        raise APIError(404, "This server shows no runs: start it with --runs FOLDER", code="not_found")
    return found


def listed(service: Service, body: None, http: HTTPRequest) -> Response:
    """The training runs below the folder of --runs, the one that changed last first."""
    runs = models_of(http).runs
    data = [] if runs is None else runs.listed()
    return json_response({"object": "list", "data": data, "served": runs is not None})


def curves(service: Service, body: CurvesRequest, http: HTTPRequest) -> Response:
    """What runs measured by step: the log's numbers by name, means of neighbours if they are many."""
    runs = _runs(http)
    found = []
    for run in body.runs:
        log = runs.log(run, runs.folder(run))
        named = {name: pooled(points, body.points) for name, points in log.curves.items()}
        found.append({"run": run, "step": log.step, "curves": named})
    return json_response({"data": found})


def samples(service: Service, body: SamplesRequest, http: HTTPRequest) -> Response:
    """What a run wrote while it trained: samples, and its answers to held-out questions with their scores."""
    runs = _runs(http)
    log = runs.log(body.run, runs.folder(body.run))
    kept = {
        "samples": [one for one in list(log.samples) if one["step"] >= body.first],
        "answers": [one for one in list(log.answers) if one["step"] >= body.first],
    }
    return json_response({"run": body.run, **kept})


def checkpoint(service: Service, body: CheckpointRequest, http: HTTPRequest) -> Response:
    """What a checkpoint has learned: a sentence's surprisal, induction scores, and a map of its tokens."""
    runs = _runs(http)
    path = runs.checkpoint(body.run, body.step)
    other = None if body.reference is None else runs.checkpoint(body.run, body.reference)
    with runs.errors():
        lm = load(path)
    check_stopped()
    with errors_in("text"):
        if len(lm.ids(body.text)) > LONGEST:
            raise APIError(400, f"The sentence has more than {LONGEST} tokens", param="text")
        found = checkpoints.surprisal(lm, body.text)
    spend(len(found))
    check_stopped()
    scores = checkpoints.induction(lm)
    check_stopped()
    drawn = list(dict.fromkeys(one["id"] for one in found))[: checkpoints.MOST]
    rows = checkpoints.table(lm.subject, drawn) if len(drawn) > 2 else None
    placed = None
    if rows is not None and np.isfinite(rows).all():
        onto = rows
        if other is not None and other != path:
            with runs.errors():
                onto = checkpoints.table(load(other).subject, drawn)
        placed = {"texts": [tokens.text(lm.tokenizer, [one]) for one in drawn]}
        placed |= checkpoints.aligned(rows, onto)
    known = [one["nats"] for one in found if one["nats"] is not None]
    return json_response(
        {
            "run": body.run,
            "step": body.step,
            "model": f"{body.run}{CHECKPOINT}{body.step}",
            "tokens": found,
            "mean": float(np.mean(known)) if known else None,
            "induction": scores,
            "map": placed,
        }
    )


def load(path: Any) -> Any:
    """A checkpoint as a model."""
    import cutaway

    return cutaway.load(path)


NEEDS = ("internals",)
ROUTES = [
    Route("GET", "/v1/runs", NEEDS, beside(listed)),
    Route("POST", "/v1/runs/curves", NEEDS, beside(curves), CurvesRequest),
    Route("POST", "/v1/runs/samples", NEEDS, beside(samples), SamplesRequest),
    Route("POST", "/v1/runs/checkpoint", NEEDS, computed(checkpoint), CheckpointRequest, computes=True),
]
