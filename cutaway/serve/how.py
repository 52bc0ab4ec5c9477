"""/v1/how/...: the data of the page's "How it works", each chapter on a text and the loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.extras import need
from cutaway.inspect.how import architecture, mechanisms, plan, quantized, tokenizers, vectors
from cutaway.serve.api_error import APIError
from cutaway.serve.json_body import json_response
from cutaway.serve.routes import Route, beside, computed
from cutaway.serve.service import Service
from cutaway.serve.validation import FailFast, StrictModel, Text
from cutaway.serve.work_pool import check_stopped, spend

Words = Annotated[list[Text], FailFast, Field(max_length=vectors.MOST)]


class HowRequest(StrictModel):
    """A text and the model."""

    model: Text | None = None
    text: Text


class VectorsRequest(StrictModel):
    """Words of the embedding table, and an analogy a - b + c."""

    model: Text | None = None
    words: Words = Field(list(vectors.WORDS))
    analogy: Words = Field(list(vectors.ANALOGY))


class ModelRequest(StrictModel):
    model: Text | None = None


class QuantizedRequest(HowRequest):
    """A text, and the type that the weights are quantized to."""

    type: Literal["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K"]


def cut(service: Service, body: HowRequest, http: HTTPRequest) -> Response:
    """A text by many tokenizers, and the training of two of them step by step."""
    service.check_model(body.model)
    return json_response(tokenizers.tokenizers(service.lm.tokenizer, body.text))


def mapped(service: Service, body: VectorsRequest, http: HTTPRequest) -> Response:
    """Words in the embedding table: their map, their neighbours, and an analogy."""
    service.check_model(body.model)
    _ = service.decoder
    return json_response(vectors.vectors(service.lm.subject, body.words, body.analogy))


def kinds(service: Service, body: HowRequest, http: HTTPRequest) -> Response:
    """Every attention mechanism in the model's sizes: its mask on a text, its cost and its cache."""
    service.check_model(body.model)
    return json_response(mechanisms.mechanisms(service.lm.config, len(_ids(service, body))))


def parts(service: Service, body: ModelRequest, http: HTTPRequest) -> Response:
    """The model's blocks with their sizes, stored bytes and switches."""
    service.check_model(body.model)
    _ = service.decoder
    return json_response(architecture.architecture(service.lm))


def planned(service: Service, body: HowRequest, http: HTTPRequest) -> Response:
    """What runs in parallel for a text and the token after it: steps with operations, bytes, least time."""
    service.check_model(body.model)
    ids = _ids(service, body)
    return json_response(plan.plan(service.lm, len(ids)))


def requantized(service: Service, body: QuantizedRequest, http: HTTPRequest) -> Response:
    """A text by the model in another weight type: KL divergence by position, and the next tokens."""
    service.check_model(body.model)
    _ = service.decoder
    ids = _ids(service, body)
    spend(2 * len(ids))
    return json_response(quantized.quantized(service.lm, ids, body.type))


def aligned(service: Service, body: HowRequest, http: HTTPRequest) -> Response:
    """The alignments of a small translator with Bahdanau's attention that spells a text's words backwards."""
    service.check_model(body.model)
    need("Training the translator", "torch")
    from cutaway.inspect.how import alignment

    return json_response(alignment.alignments(body.text, check_stopped))


def _ids(service: Service, body: HowRequest) -> Sequence[int]:
    """The ids of the text; APIError for none."""
    ids: Any = service.lm.tokenizer.encode(body.text)
    if not ids:
        raise APIError(400, "The text is empty", param="text")
    return ids


NEEDS = ("internals",)
ROUTES = [
    Route("POST", "/v1/how/tokenizers", NEEDS, beside(cut), HowRequest),
    Route("POST", "/v1/how/vectors", NEEDS, beside(mapped), VectorsRequest),
    Route("POST", "/v1/how/mechanisms", NEEDS, beside(kinds), HowRequest),
    Route("POST", "/v1/how/architecture", NEEDS, beside(parts), ModelRequest),
    Route("POST", "/v1/how/alignments", NEEDS, computed(aligned), HowRequest, computes=True),
    Route("POST", "/v1/how/plan", NEEDS, computed(planned), HowRequest, computes=True),
    Route("POST", "/v1/how/quantized", NEEDS, computed(requantized), QuantizedRequest, computes=True),
]
