"""/tokenize, /detokenize and /v1/chat/count: a prompt's ids, without running the model."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

import cutaway
from cutaway.serve.chat import chat_ids, ending
from cutaway.serve.openai_format import APIError, json_response, token_string
from cutaway.serve.protocol import ChatCountRequest, DetokenizeRequest, TokenizeRequest
from cutaway.serve.service import Service, check_stopped


def tokenize(service: Service, body: TokenizeRequest) -> Response:
    """The ids of a text, in the form of the server whose field it came in."""
    service.engine_of(body.model)
    given = [name for name in ("text", "content", "prompt", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        raise APIError(400, "Give one text: text, content, prompt or messages", param="text")
    tokenizer = service.lm.tokenizer
    if body.messages is not None:
        ids = chat_ids(service, body.messages, body.tools, ending(body))
    else:
        special = body.special or ("allow" if body.parse_special else "text")
        around = body.add_special if body.add_special is not None else body.add_special_tokens
        around = given == ["prompt"] if around is None else around
        ids = tokenizer.encode(getattr(body, given[0]), special, around)
    check_stopped()
    tokens = [token_string(tokenizer, id) for id in ids]
    check_stopped()
    if given == ["text"]:
        return json_response({"ids": ids, "tokens": tokens, "count": len(ids)})
    if given == ["content"]:
        pieces = [{"id": id, "piece": piece} for id, piece in zip(ids, tokens, strict=True)]
        return json_response({"tokens": pieces if body.with_pieces else ids})
    found = {"count": len(ids), "max_model_len": service.lm.context, "tokens": ids}
    return json_response(found | {"token_strs": tokens if body.return_token_strs else None})


def detokenize(service: Service, body: DetokenizeRequest) -> Response:
    """The text of ids; bytes that are no text become U+FFFD."""
    service.engine_of(body.model)
    if (body.ids is None) == (body.tokens is None):
        raise APIError(400, "Give ids, or tokens as other servers call them", param="ids")
    if body.ids is not None:
        return json_response({"text": service.lm.tokenizer.decode(body.ids)})
    text = service.lm.tokenizer.decode(body.tokens or [])
    return json_response({"content": text, "prompt": text})  # llama.cpp's name, and vLLM's


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
    ids = chat_ids(service, body.messages, body.tools, ending(body))
    return json_response({"tokens": len(ids), "context": service.context})
