"""/tokenize, /detokenize and /v1/chat/count: what the model would read, without asking it."""

from __future__ import annotations

from starlette.responses import Response

from cutaway.serve import json_body, openai_format
from cutaway.serve.chat import chat_ids
from cutaway.serve.protocol import ChatCount, Detokenize, Tokenize
from cutaway.serve.service import Service


def tokenize(service: Service, body: Tokenize) -> Response:
    """The ids of a text, and each as text."""
    service.check_model(body.model)
    tokenizer = service.lm.tokenizer
    ids = tokenizer.encode(body.text, body.special, body.add_special)
    spelt = [openai_format.spelt(tokenizer, id) for id in ids]
    return json_body.answer({"ids": ids, "tokens": spelt, "count": len(ids)})


def detokenize(service: Service, body: Detokenize) -> Response:
    """The text of ids; bytes that are no text become U+FFFD."""
    service.check_model(body.model)
    return json_body.answer({"text": service.lm.tokenizer.decode(body.ids)})


def count(service: Service, body: ChatCount) -> Response:
    """How many tokens a conversation has as the model reads it, and how many its context holds."""
    service.check_model(body.model)
    ids = chat_ids(service, body.messages, body.tools)
    return json_body.answer({"tokens": len(ids), "context": service.context})
