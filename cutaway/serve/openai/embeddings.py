"""/v1/embeddings, /v1/rerank and /v1/score: texts as vectors, and by how near they are.

An encoder pools as its makers chose; a decoder's request names it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.serve.api_error import APIError, ContextError, errors_in
from cutaway.serve.json_body import json_response
from cutaway.serve.openai.schema import EmbeddingRequest, RerankRequest, ScoreRequest
from cutaway.serve.prompts import prompts
from cutaway.serve.routes import Route, computed
from cutaway.serve.service import Service, new_id
from cutaway.serve.work_pool import check_stopped, spend, stoppable

TOKENS = 8192  # read at once: bounds the memory of long texts


def embeddings(service: Service, body: EmbeddingRequest, http: HTTPRequest) -> Response:
    """Texts as vectors."""
    vectors, read = embed(service, body)
    data = [
        {
            "object": "embedding",
            "index": i,
            "embedding": _base64(vector) if body.encoding_format == "base64" else vector,
        }
        for i, vector in enumerate(vectors)
    ]
    counts = {"prompt_tokens": read, "total_tokens": read}
    response = json_response({"object": "list", "data": data, "model": service.name, "usage": counts})
    if not isinstance(body.input, str) and not isinstance(body.input[0], str):
        response.headers["x-cutaway-ids"] = "read as ids of this model's own vocabulary"
    return response


def rerank(service: Service, body: RerankRequest, http: HTTPRequest) -> Response:
    """Texts by how near they are to a query: a cross-encoder's scores, else the cosine of their vectors."""
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    if service.lm.ranks:
        scores, read = _ranked(service, body.model, body.query, texts)
    else:
        fields = {"model": body.model, "input": [body.query, *texts], "pooling": body.pooling}
        vectors, read = embed(service, EmbeddingRequest.model_validate(fields))
        scores = vectors[1:] @ vectors[0]
    results = [
        {"index": int(i), "relevance_score": float(scores[i])}
        | ({"document": {"text": texts[i]}} if body.return_documents else {})
        for i in np.argsort(-scores, kind="stable")[: body.top_n]
    ]
    response = {"id": new_id("rerank"), "model": body.model or service.name, "results": results}
    return json_response(response | {"usage": {"prompt_tokens": read, "total_tokens": read}})


def _ranked(service: Service, model: str | None, query: str, texts: Sequence[str]) -> tuple[np.ndarray, int]:
    """A cross-encoder's score of each text, and how many tokens were read."""
    service.check_model(model)
    service.limits.check_inputs(len(texts), "documents")
    counts = [service.lm.inputs.count(query, text) for text in texts]
    if max(counts) > (most := service.lm.context):
        raise ContextError(max(counts), 0, most, "input")
    spend(sum(counts))
    at_once = max(1, min(32, TOKENS // max(counts)))
    with errors_in("documents"), _stoppable(service):
        return service.lm.rank(query, texts, at_once, lambda *_: check_stopped()), sum(counts)


def _stoppable(service: Service) -> AbstractContextManager[None]:
    """A PyTorch model ends before its next block once its request is over; the runtime looks as it counts."""
    engines = service.lm.engines
    return nullcontext() if engines.choice()[0] == "runtime" else stoppable(engines.pytorch_model)


def score(service: Service, body: ScoreRequest, http: HTTPRequest) -> Response:
    """Pairs of texts by the cosine of their vectors: one with each of several, or two lists in step."""
    first, second = ([one] if isinstance(one, str) else one for one in (body.text_1, body.text_2))
    if not first or not second or len(first) not in (1, len(second)):
        text = f"text_1 has {len(first)} texts and text_2 {len(second)}: give one, or as many as text_2 has"
        raise APIError(400, text, param="text_1")
    if service.lm.ranks:
        pairs = [(first[0] if len(first) == 1 else first[i], one) for i, one in enumerate(second)]
        ranked = [_ranked(service, body.model, one, [other]) for one, other in pairs]
        scores, read = np.concatenate([own for own, _ in ranked]), sum(count for _, count in ranked)
    else:
        fields = {"model": body.model, "input": [*first, *second], "pooling": body.pooling}
        vectors, read = embed(service, EmbeddingRequest.model_validate(fields))
        scores = (vectors[: len(first)] * vectors[len(first) :]).sum(axis=1)
    data = [{"index": i, "object": "score", "score": float(one)} for i, one in enumerate(scores)]
    counts = {"prompt_tokens": read, "total_tokens": read}
    return json_response(service.head("score", "list", body.model) | {"data": data, "usage": counts})


def embed(service: Service, body: EmbeddingRequest, truncate: bool = False) -> tuple[np.ndarray, int]:
    """A vector of length 1 for each text [n d], and how many tokens were read. UserError for texts that the
    model cannot read whole.
    """
    service.check_model(body.model)
    given: Any = [body.input] if isinstance(body.input, str) else body.input
    service.limits.check_inputs(len(given) if given and not isinstance(given[0], int) else 1, "input")
    rows, width = prompts(service, body.input, "input", whole=True), service.lm.config.width
    if body.dimensions not in (None, width, *service.dimensions):
        lengths = ", ".join(map(str, service.dimensions[:16])) or "no other length"
        text = f"This model's vectors have {width} numbers, and it was trained for {lengths}"
        raise APIError(400, f"{text}: leave dimensions out", param="dimensions")
    pooling = body.pooling or service.pooling
    if pooling is None and not service.lm.is_encoder:
        raise APIError(
            400,
            f"{service.name} is a decoder, not made to turn texts into vectors: say how to pool its tokens, "
            "by mean, cls or last (or start the server with --pooling)",
            param="pooling",
        )
    longest, most = max(map(len, rows)), service.lm.context
    if longest > most and not truncate:
        raise ContextError(longest, 0, most, "input")
    at_once = max(1, TOKENS // max(1, *map(len, rows)))
    read = sum(map(len, rows))
    spend(read)
    with errors_in("input"), _stoppable(service):
        vectors = service.lm.embed(
            rows,
            pooling,
            dimensions=body.dimensions,
            batch=min(32, at_once),
            truncate=truncate,
            progress=lambda *_: check_stopped(),
        )
    return vectors, read


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


ROUTES = [
    Route("POST", "/v1/embeddings", ("embed",), computed(embeddings), EmbeddingRequest, computes=True),
    Route("POST", "/v1/rerank", ("embed",), computed(rerank), RerankRequest, computes=True),
    Route("POST", "/v1/score", ("embed",), computed(score), ScoreRequest, computes=True),
]
