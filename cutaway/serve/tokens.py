"""/tokenize, /detokenize and /v1/chat/count: what the model would read, without asking it."""

from __future__ import annotations

from typing import Any

from cutaway.serve import openai_format
from cutaway.serve.chat import chat_ids
from cutaway.serve.protocol import ChatCount, Detokenize, Tokenize
from cutaway.serve.service import Service


def tokenize(service: Service, body: Tokenize) -> dict[str, Any]:
    """The ids of a text, and each as text."""
    service.check_model(body.model)
    tokenizer = service.lm.tokenizer
    ids = tokenizer.encode(body.text, body.special, body.add_special)
    return {"ids": ids, "tokens": [openai_format.spelt(tokenizer, id) for id in ids], "count": len(ids)}


def detokenize(service: Service, body: Detokenize) -> dict[str, Any]:
    """The text of ids; bytes that are no text become U+FFFD."""
    service.check_model(body.model)
    return {"text": service.lm.tokenizer.decode(body.ids)}


def count(service: Service, body: ChatCount) -> dict[str, Any]:
    """How many tokens a conversation has as the model reads it, and how many its context holds."""
    service.check_model(body.model)
    ids = chat_ids(service, body.messages, body.tools)
    return {"tokens": len(ids), "context": service.context}
