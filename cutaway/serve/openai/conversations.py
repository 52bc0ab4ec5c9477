"""/v1/conversations: items that the server keeps, and that responses go on with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.serve.api_error import APIError
from cutaway.serve.json_body import json_response
from cutaway.serve.openai.items import bounded, kept, listed, named, resolved, shown_entry, shown_item
from cutaway.serve.openai.responses_schema import (
    CompactionItem,
    ConversationItems,
    ConversationRequest,
    ConversationUpdate,
    InputItem,
)
from cutaway.serve.openai.stored_responses import forgotten
from cutaway.serve.operations.request_record import key_of
from cutaway.serve.response_store import Entry
from cutaway.serve.routes import Route, beside, query_of
from cutaway.serve.service import Service, new_id


def create(service: Service, body: ConversationRequest, http: HTTPRequest) -> Response:
    """A conversation that responses go on with."""
    id, key = new_id("conv"), key_of(http)
    shown = {
        "id": id,
        "object": "conversation",
        "created_at": int(time.time()),
        "metadata": body.metadata or {},
    }
    items = bounded(service, _added(service, body.items or (), key))
    service.store.put(key, {id: Entry("conversation", shown, items)})
    return json_response(shown)


def update(service: Service, body: ConversationUpdate, http: HTTPRequest) -> Response:
    """Note something of a stored conversation."""
    key, id = _named(http)
    found = kept(service, key, id, "conversation")
    shown = found.shown | {"metadata": body.metadata or {}}
    service.store.put(key, {id: replace(found, shown=shown)})
    return json_response(shown)


def add_items(service: Service, body: ConversationItems, http: HTTPRequest) -> Response:
    """Add items to a stored conversation."""
    key, id = _named(http)
    found = kept(service, key, id, "conversation")
    added = _added(service, body.items, key)
    service.store.put(key, {id: replace(found, items=bounded(service, [*found.items, *added]))})
    return json_response(listed([shown_item(item) for item in added]))


def _added(service: Service, items: Sequence[InputItem | CompactionItem], key: bytes) -> list[dict[str, Any]]:
    """A request's items as a conversation keeps them."""
    return named(resolved(service, [item.model_dump(exclude_none=True) for item in items], key))


def fetched(service: Service, _: None, http: HTTPRequest) -> Response:
    """A stored conversation."""
    return json_response(shown_entry(service, *_named(http), "conversation"))


def listed_items(service: Service, _: None, http: HTTPRequest) -> Response:
    """The items of a stored conversation."""
    items, page = kept(service, *_named(http), "conversation").items, query_of(http)
    items = items if page["order"] == "asc" else items[::-1]
    if page["after"]:
        items = items[_place(items, page["after"]) + 1 :]
    count = min(max(page["limit"], 1), 100)
    return json_response(listed([shown_item(item) for item in items[:count]], len(items) > count))


def item(service: Service, _: None, http: HTTPRequest) -> Response:
    """An item of a stored conversation."""
    items = kept(service, *_named(http), "conversation").items
    return json_response(shown_item(items[_place(items, http.path_params["item"])]))


def forget_item(service: Service, _: None, http: HTTPRequest) -> Response:
    """Take an item out of a stored conversation."""
    key, id = _named(http)
    found = kept(service, key, id, "conversation")
    at = _place(found.items, http.path_params["item"])
    items = [*found.items[:at], *found.items[at + 1 :]]
    service.store.put(key, {id: replace(found, items=items)})
    return json_response(found.shown)


def delete(service: Service, _: None, http: HTTPRequest) -> Response:
    """Forget a stored conversation."""
    return forgotten(service, http, "conversation")


def _named(http: HTTPRequest) -> tuple[bytes, str]:
    """The API key of a request, and the id of the conversation that its path names."""
    return key_of(http), http.path_params["id"]


def _place(items: Sequence[dict[str, Any]], id: str) -> int:
    """The index of the item with this id. APIError where none has it."""
    at = next((n for n, item in enumerate(items) if item["id"] == id), None)
    if at is None:
        raise APIError(404, f"There is no item {id[:100]!r} in this conversation", code="not_found")
    return at


PAGE = {"order": (Literal["asc", "desc"], "desc"), "limit": (int, 20), "after": (str, "")}
AT = "/v1/conversations"
ROUTES = [
    Route("POST", AT, ("chat",), beside(create), ConversationRequest),
    Route("GET", f"{AT}/{{id}}", ("chat",), beside(fetched)),
    Route("POST", f"{AT}/{{id}}", ("chat",), beside(update), ConversationUpdate),
    Route("DELETE", f"{AT}/{{id}}", ("chat",), beside(delete)),
    Route("GET", f"{AT}/{{id}}/items", ("chat",), beside(listed_items), query=PAGE),
    Route("POST", f"{AT}/{{id}}/items", ("chat",), beside(add_items), ConversationItems),
    Route("GET", f"{AT}/{{id}}/items/{{item}}", ("chat",), beside(item)),
    Route("DELETE", f"{AT}/{{id}}/items/{{item}}", ("chat",), beside(forget_item)),
]
