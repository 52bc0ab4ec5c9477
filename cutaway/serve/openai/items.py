"""Items of responses and conversations: those that a request is about, as messages, and as they are shown.

What is kept is the response and the items that led to it, so that ``previous_response_id``, an item's
reference or a conversation goes on from there; no other key finds it (response_store.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from cutaway.serve.api_error import APIError
from cutaway.serve.openai.responses_schema import CompactionItem, InputItem
from cutaway.serve.response_store import Entry, Kind
from cutaway.serve.service import Service, new_id


def items_of(
    service: Service,
    key: bytes,
    given: str | Sequence[InputItem | CompactionItem] | None,
    response: str | None = None,
    conversation: str | None = None,
) -> list[dict[str, Any]]:
    """All items that a request is about: those of the response or the conversation that it goes on with, and
    its own.
    """
    if isinstance(given, str):
        own: list[dict[str, Any]] = [{"type": "message", "role": "user", "content": given}]
    else:
        own = [item.model_dump(exclude_none=True) for item in given or ()]
    if response and conversation:
        text = "previous_response_id and conversation both say what came before: give one"
        raise APIError(400, text, param="conversation")
    earlier: list[dict[str, Any]] = []
    if conversation is not None:
        earlier = kept(service, key, conversation, "conversation", "conversation").items
    elif response is not None:
        earlier = kept(service, key, response, "response", "previous_response_id").items
    return [*earlier, *resolved(service, own, key)]


def resolved(service: Service, items: Sequence[dict[str, Any]], key: bytes) -> list[dict[str, Any]]:
    """The items, with what references name in their place: together no more than a body may bring."""
    made, size, most = list[dict[str, Any]](), 0, service.limits.body_bytes
    for item in items:
        if item["type"] == "item_reference":
            item = kept(service, key, item.get("id") or "", "item", "input").shown
            size += len(json.dumps(item))
            if size > most:
                text = f"The items that are referred to have more than the {most:,} bytes of a body"
                raise APIError(413, text, param="input", code="body_too_large")
        made.append(item)
    return made


def kept(service: Service, key: bytes, id: str, kind: Kind, param: str | None = None) -> Entry:
    """What is kept under an id. APIError where nothing is, or another kind of thing, or another key's."""
    found = service.store.get(key, id, kind)
    if found is None:
        raise missing(id, kind, param)
    return found


def missing(id: str, kind: Kind, param: str | None = None) -> APIError:
    text = f"There is no {kind} {id[:100]!r} here: it was not stored, was deleted, or its time is over"
    return APIError(404 if param is None else 400, text, param=param, code="not_found")


def messages_of(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items as a chat's messages: a thought, a text and calls in a row are one message of the assistant."""
    made: list[dict[str, Any]] = []

    def assistant(fits: bool) -> dict[str, Any]:
        if not (made and made[-1]["role"] == "assistant" and fits):
            made.append({"role": "assistant", "content": None, "tool_calls": []})
        return made[-1]

    for n, item in enumerate(items):
        after = n > 0 and items[n - 1]["type"] in ("reasoning", "function_call", "message")
        if item["type"] == "reasoning":
            parts = item.get("content") or item.get("summary") or []
            assistant(False)["reasoning_content"] = _text(parts)
        elif item["type"] == "function_call":
            call = {"name": item.get("name") or "", "arguments": item.get("arguments")}
            assistant(after)["tool_calls"].append({"id": item.get("call_id"), "function": call})
        elif item["type"] == "function_call_output":
            output, id = _text(item.get("output") or ""), item.get("call_id")
            made.append({"role": "tool", "content": output, "tool_call_id": id})
        elif item.get("role") == "assistant":
            thought = bool(made) and items[n - 1]["type"] == "reasoning"
            assistant(thought)["content"] = _text(item.get("content") or "")
        else:
            content = item.get("content")
            role = item.get("role") or "user"
            made.append({"role": role, "content": None if content is None else _text(content)})
    return [one for one in made if one["role"] != "assistant" or any(one.values())]


def _text(content: str | Sequence[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "\n".join(part.get("text") or "" for part in content)


def shown_entry(service: Service, key: bytes, id: str, kind: Kind) -> dict[str, Any]:
    found = service.store.shown(key, id, kind)
    if found is None:
        raise missing(id, kind)
    return found


def listed(items: list[dict[str, Any]], more: bool = False) -> dict[str, Any]:
    first, last = (items[0]["id"], items[-1]["id"]) if items else ("", "")
    return {"object": "list", "data": items, "has_more": more, "first_id": first, "last_id": last}


def bounded(service: Service, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items, if a request may bring so much at once: what reads a conversation reads all of it."""
    most = service.limits.body_bytes
    if len(json.dumps(items)) > most:
        text = f"The conversation would have more than the {most:,} bytes of a body: begin another"
        raise APIError(413, text, param="items", code="body_too_large")
    return items


def named(items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items with an id each, by which a conversation finds them."""
    return [{"id": new_id("msg"), **item} for item in items]


def shown_item(item: dict[str, Any]) -> dict[str, Any]:
    """A stored item as the API shows it: a message's text is a list of parts."""
    shown = {"status": "completed", **item}
    if item["type"] == "message" and isinstance(item.get("content"), str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        shown["content"] = [{"type": kind, "text": item["content"]}]
    return shown
