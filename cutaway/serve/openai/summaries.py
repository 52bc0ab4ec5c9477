"""Summaries of compacted conversations: signed, given to the client, and read back.

The client keeps the summary as a compaction item, whose ``encrypted_content`` is the summary behind an
HMAC-SHA256 of it and of the API key that asked. So a text that the model reads in the assistant's voice as
its own summary is one that a model of this server wrote for this key. It is signed and not encrypted: it
says what its client's own items say.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from cutaway.serve.api_error import APIError

HEAD = "Summary of the conversation so far:\n\n"
SIGNATURE = hashlib.sha256().digest_size  # bytes


def sealed(secret: bytes, key: bytes, text: str) -> str:
    """A summary as the client keeps it."""
    data = text.encode("utf-8", "replace")
    return base64.urlsafe_b64encode(_signature(secret, key, data) + data).decode()


def opened(secret: bytes, key: bytes, content: str) -> str | None:
    """The summary of a compaction item; None where it was not sealed with this secret for this key."""
    try:
        raw = base64.b64decode(content.encode("ascii"), b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return None
    signature, data = raw[:SIGNATURE], raw[SIGNATURE:]
    if not hmac.compare_digest(signature, _signature(secret, key, data)):
        return None
    return data.decode()


def _signature(secret: bytes, key: bytes, data: bytes) -> bytes:
    # The key's hash has one length, so that no key and text are another key and text.
    return hmac.digest(secret, b"compaction" + hashlib.sha256(key).digest() + data, "sha256")


def read(secret: bytes, key: bytes, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items with each compaction as the assistant's words. APIError for one that is not this server's."""
    return [_spoken(secret, key, item) if item["type"] == "compaction" else item for item in items]


def _spoken(secret: bytes, key: bytes, item: dict[str, Any]) -> dict[str, Any]:
    text = opened(secret, key, item["encrypted_content"])
    if text is None:
        raise APIError(
            400,
            "The input has a compaction that this server did not write for this API key, or wrote before it "
            "was started again without --store: compact the conversation again",
            param="input",
            code="invalid_compaction",
        )
    return {"type": "message", "role": "assistant", "content": HEAD + text}


def joined(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with those of a user in a row as one: some templates refuse two, and a compacted
    conversation begins with all of its user's words.
    """
    made: list[dict[str, Any]] = []
    for is_user, group in groupby(messages, lambda one: one["role"] == "user" and bool(one["content"])):
        run = list(group)
        if is_user:
            run = [run[0] | {"content": "\n\n".join(one["content"] for one in run)}]
        made += run
    return made
