"""/api/embed and /api/embeddings of Ollama."""

from __future__ import annotations

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.serve.json_body import json_response
from cutaway.serve.ollama.models import name_of
from cutaway.serve.ollama.schema import EmbeddingsRequest, EmbedRequest
from cutaway.serve.openai import embeddings
from cutaway.serve.openai.schema import EmbeddingRequest
from cutaway.serve.routes import Route, computed
from cutaway.serve.service import Service
from cutaway.serve.validation import Leniency, checked


def embed(service: Service, body: EmbedRequest, http: HTTPRequest) -> Response:
    """Ollama's embeddings."""
    fields = {"model": name_of(service, body.model), "input": body.input, "dimensions": body.dimensions}
    asked = checked(EmbeddingRequest, fields | {"pooling": body.pooling}, Leniency(ignored=body.ignored))
    vectors, count = embeddings.embed(service, asked, bool(body.truncate))
    found = {"model": body.model or service.name, "embeddings": vectors}
    return json_response(found | {"total_duration": 0, "load_duration": 0, "prompt_eval_count": count})


def embeddings_of(service: Service, body: EmbeddingsRequest, http: HTTPRequest) -> Response:
    """One text's vector, as Ollama's clients asked for it formerly."""
    fields = {"model": name_of(service, body.model), "input": body.prompt, "pooling": body.pooling}
    asked = checked(EmbeddingRequest, fields, Leniency(ignored=body.ignored))
    return json_response({"embedding": embeddings.embed(service, asked)[0][0]})


ROUTES = [
    Route("POST", "/api/embed", ("embed",), computed(embed), EmbedRequest, computes=True),
    Route("POST", "/api/embeddings", ("embed",), computed(embeddings_of), EmbeddingsRequest, computes=True),
]
