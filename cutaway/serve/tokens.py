"""/tokenize, /detokenize and /v1/chat/count: a prompt's ids, without running the model."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, StrictBool
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.serve.api_error import APIError
from cutaway.serve.json_body import json_response
from cutaway.serve.openai.format import token_string
from cutaway.serve.openai.message_schema import Ending, Messages, Tools
from cutaway.serve.operations.api_keys import TEXT
from cutaway.serve.prompts import chat_ids, ending
from cutaway.serve.routes import Route, beside
from cutaway.serve.service import Service
from cutaway.serve.validation import MAX_IDS, Indices, StrictModel, Text
from cutaway.serve.work_pool import check_stopped


class TokenizeRequest(Ending):
    """A text: Cutaway's ``text``, llama.cpp's ``content`` or vLLM's ``prompt``; or a conversation."""

    DEFAULTS: ClassVar = {"add_generation_prompt": [True], "continue_final_message": [False]}
    model: Text | None = None
    text: Text | None = None
    content: Text | None = None
    prompt: Text | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    special: Literal["text", "allow", "forbid"] | None = Field(
        None, description="What to do with text that spells a control token: encode it as text, or as it."
    )
    add_special: StrictBool | None = Field(None, description="Put around it what the model's inputs have.")
    add_special_tokens: StrictBool | None = Field(None, description="vLLM's name of it; true for a prompt.")
    parse_special: StrictBool | None = Field(None, description="llama.cpp's: special is allow.")
    with_pieces: StrictBool | None = None
    return_token_strs: StrictBool | None = None


class DetokenizeRequest(StrictModel):
    model: Text | None = None
    ids: Indices | None = None
    tokens: Indices | None = Field(None, description="llama.cpp's and vLLM's.")


class ChatCountRequest(Ending):
    model: Text | None = None
    messages: Messages
    tools: Tools | None = None


def tokenize(service: Service, body: TokenizeRequest, http: HTTPRequest) -> Response:
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
    if len(ids) > MAX_IDS:  # its pieces would be written for seconds, beside other clients' answers
        many = f"The text has {len(ids):,} tokens, and an answer lists at most {MAX_IDS:,}: send it in parts"
        raise APIError(400, many, param=given[0], code="too_long")
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


def detokenize(service: Service, body: DetokenizeRequest, http: HTTPRequest) -> Response:
    """The text of ids; bytes that are no text become U+FFFD."""
    service.engine_of(body.model)
    if (body.ids is None) == (body.tokens is None):
        raise APIError(400, "Give ids, or tokens as other servers call them", param="ids")
    if body.ids is not None:
        return json_response({"text": service.lm.tokenizer.decode(body.ids)})
    text = service.lm.tokenizer.decode(body.tokens or [])
    return json_response({"content": text, "prompt": text})  # llama.cpp's name, and vLLM's


def count(service: Service, body: ChatCountRequest, http: HTTPRequest) -> Response:
    """How many tokens a conversation has as the model reads it, and how many its context holds."""
    service.engine_of(body.model)
    ids = chat_ids(service, body.messages, body.tools, ending(body))
    return json_response({"tokens": len(ids), "context": service.context})


ROUTES = [
    Route("POST", "/v1/chat/count", TEXT, beside(count), ChatCountRequest),
    Route("POST", "/tokenize", TEXT, beside(tokenize), TokenizeRequest),
    Route("POST", "/detokenize", TEXT, beside(detokenize), DetokenizeRequest),
]
