"""What is answered, in OpenAI's JSON: tokens with their log-probabilities, usage, internals."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from cutaway.generate.batch.request import (
    Generation,
    Piece,
)
from cutaway.tokenizer import Tokenizer

MIN_LOGPROB = -9999.0  # OpenAI's logarithm of zero, which JSON has no number for


def new_id(kind: str) -> str:
    """A unique id of an answer."""
    return f"{kind}-{uuid.uuid4().hex}"


def token_logprobs(tokenizer: Tokenizer, piece: Piece) -> dict[str, Any]:
    """A token of a chat's answer with its top alternatives."""
    assert piece.id is not None
    assert piece.logprob is not None
    others = [_token(tokenizer, id, value) for id, value in piece.top_logprobs]
    return _token(tokenizer, piece.id, piece.logprob) | {"top_logprobs": others}


def _token(tokenizer: Tokenizer, id: int, value: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(id)
    text = data.decode("utf-8", "replace")
    return {"token": text, "logprob": max(value, MIN_LOGPROB), "bytes": list(data)}


def token_string(tokenizer: Tokenizer, id: int) -> str:
    """A token as a completion names it: its text, or its bytes where they are not UTF-8."""
    data = tokenizer.token_bytes(id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def internals_of(tokenizer: Tokenizer, piece: Piece) -> dict[str, Any]:
    """The internals at the position from which a token was chosen."""
    layers = [
        {
            "layer": one.layer,
            "attention": [
                {
                    "entropy": head.entropy,
                    "positions": [{"position": at, "weight": weight} for at, weight in head.positions],
                }
                for head in one.heads
            ],
            "lens": [
                {"id": id, "token": token_string(tokenizer, id), "probability": probability}
                for id, probability in one.lens
            ],
            "lens_entropy": one.entropy,
        }
        for one in piece.inside
    ]
    return {"id": piece.id, "layers": layers}


def finish_reason(generation: Generation) -> str:
    """OpenAI's word for what ended an answer: a full context is a length too."""
    return "stop" if generation.finish_reason == "stop" else "length"


def usage(generations: Sequence[Generation], prompts: Sequence[Generation]) -> dict[str, Any]:
    """How many tokens were read and generated; ``prompts`` has one generation for each prompt."""
    read = sum(len(one.prompt_ids) for one in prompts)
    generated = sum(len(one.ids) for one in generations)
    cached = read - sum(one.timings.prefill_tokens for one in prompts)
    return {
        "prompt_tokens": read,
        "completion_tokens": generated,
        "total_tokens": read + generated,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def warned(warnings: Sequence[str]) -> dict[str, Any]:
    """The field ``warnings`` of an answer, where there are any."""
    return {"warnings": warnings} if warnings else {}
