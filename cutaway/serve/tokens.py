"""/tokenize, /detokenize and /v1/chat/count: a prompt's ids, without running the model."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

import cutaway
from cutaway.serve.chat import chat_ids
from cutaway.serve.openai_format import json_response, token_string
from cutaway.serve.protocol import ChatCountRequest, DetokenizeRequest, TokenizeRequest
from cutaway.serve.service import Service


def tokenize(service: Service, body: TokenizeRequest) -> Response:
    """The ids of a text, and each as text."""
    service.engine_of(body.model)
    tokenizer = service.lm.tokenizer
    ids = tokenizer.encode(body.text, body.special, body.add_special)
    tokens = [token_string(tokenizer, id) for id in ids]
    return json_response({"ids": ids, "tokens": tokens, "count": len(ids)})


def detokenize(service: Service, body: DetokenizeRequest) -> Response:
    """The text of ids; bytes that are no text become U+FFFD."""
    service.engine_of(body.model)
    return json_response({"text": service.lm.tokenizer.decode(body.ids)})


def props(service: Service) -> dict[str, Any]:
    """What llama.cpp's clients ask of a server."""
    return {
        "default_generation_settings": {"n_ctx": service.lm.context},
        "total_slots": service.limits.max_sequences,
        "model_path": service.name,
        "chat_template": service.lm.checkpoint.chat_template or "",
        "build_info": f"cutaway-{cutaway.__version__}",
    }


def count(service: Service, body: ChatCountRequest) -> Response:
    """How many tokens a conversation has as the model reads it, and how many its context holds."""
    service.engine_of(body.model)
    ids = chat_ids(service, body.messages, body.tools)
    return json_response({"tokens": len(ids), "context": service.context})
