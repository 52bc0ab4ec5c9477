"""/slots and /props of llama-server: what its clients ask of a server."""

from __future__ import annotations

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

import cutaway
from cutaway.serve.json_body import json_response
from cutaway.serve.operations.api_keys import ANY
from cutaway.serve.routes import Route, beside
from cutaway.serve.service import Service


def slots(service: Service, body: None, http: HTTPRequest) -> Response:
    """The places for answers, as llama-server tells them; whose answers they hold is not shown."""
    stats = service.scheduler.stats() if service.scheduler is not None else None
    running = 0 if stats is None else stats.running
    places = service.limits.max_sequences
    drafts = service.scheduler is not None and service.scheduler.drafts
    return json_response(
        [
            {"id": i, "n_ctx": service.lm.context, "speculative": drafts, "is_processing": i < running}
            for i in range(places)
        ]
    )


def props(service: Service, body: None, http: HTTPRequest) -> Response:
    """What llama.cpp's clients ask: the context, the template, the slots."""
    return json_response(
        {
            "default_generation_settings": {"n_ctx": service.lm.context},
            "total_slots": service.limits.max_sequences,
            "model_path": service.name,
            "chat_template": service.lm.checkpoint.chat_template or "",
            "build_info": f"cutaway-{cutaway.__version__}",
        }
    )


ROUTES = [
    Route("GET", "/slots", ANY, beside(slots)),
    Route("GET", "/props", ANY, beside(props)),
]
