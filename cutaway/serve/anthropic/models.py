"""/v1/models in Anthropic's form (docs.anthropic.com/en/api/models-list)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cutaway.serve.api_error import APIError

MOST = 1000  # models of a page


def card(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model of OpenAI's list in Anthropic's form."""
    created = datetime.fromtimestamp(model["created"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"type": "model", "id": model["id"], "display_name": model["id"], "created_at": created}


def listed(models: Sequence[Mapping[str, Any]], limit: int, after: str, before: str) -> dict[str, Any]:
    """At most ``limit`` models behind one, or before one. APIError for an id that there is not."""
    if not 1 <= limit <= MOST:
        raise APIError(400, f"limit is {limit}: give a number from 1 to {MOST}", param="limit")
    ids = [model["id"] for model in models]
    start, end = _place(ids, after, "after_id", -1) + 1, _place(ids, before, "before_id", len(ids))
    found = list(models[start:end])
    page = found[-limit:] if before and not after else found[:limit]
    return {
        "data": [card(model) for model in page],
        "has_more": len(found) > len(page),
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }


def _place(ids: Sequence[str], id: str, param: str, otherwise: int) -> int:
    if not id:
        return otherwise
    if id not in ids:
        raise APIError(400, f"{param} names {id[:100]!r}, which is no model here", param=param)
    return ids.index(id)
