"""What the model chose, in OpenAI's JSON: tokens, their log-probabilities, ends, counts, and the inside."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from cutaway.generate.decode import Generation, Piece
from cutaway.generate.internals import LayerInternals
from cutaway.tokenizer import Tokenizer

IMPOSSIBLE = -9999.0  # how OpenAI writes the logarithm of zero, which JSON has no number for


def named(kind: str) -> str:
    """An id that no other answer has."""
    return f"{kind}-{uuid.uuid4().hex}"


def logprob(value: float) -> float:
    """A log-probability as JSON can say it."""
    return max(value, IMPOSSIBLE)


def chosen(tokenizer: Tokenizer, piece: Piece) -> dict[str, Any]:
    """A token of a chat's answer with the likeliest others."""
    assert piece.id is not None
    assert piece.logprob is not None
    others = [_token(tokenizer, id, value) for id, value in piece.top_logprobs]
    return _token(tokenizer, piece.id, piece.logprob) | {"top_logprobs": others}


def _token(tokenizer: Tokenizer, id: int, value: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(id)
    return {"token": data.decode("utf-8", "replace"), "logprob": logprob(value), "bytes": list(data)}


def spelt(tokenizer: Tokenizer, id: int) -> str:
    """A token as a completion names it: its text, or its bytes where they are no text."""
    data = tokenizer.token_bytes(id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def looked(tokenizer: Tokenizer, piece: Piece) -> dict[str, Any]:
    """What was seen of the inside where a token was chosen."""
    return {"id": piece.id, "layers": [_layer(tokenizer, one) for one in piece.inside]}


def _layer(tokenizer: Tokenizer, one: LayerInternals) -> dict[str, Any]:
    heads = [
        {"entropy": head.entropy, "positions": [{"position": at, "weight": w} for at, w in head.positions]}
        for head in one.heads
    ]
    guesses = [{"id": id, "token": spelt(tokenizer, id), "probability": chance} for id, chance in one.lens]
    return {"layer": one.layer, "attention": heads, "lens": guesses, "lens_entropy": one.entropy}


def ending(done: Generation) -> str:
    """OpenAI's word for what ended an answer: a full context is a length too."""
    return "stop" if done.finish_reason == "stop" else "length"


def usage(done: Sequence[Generation], prompts: Sequence[Generation]) -> dict[str, Any]:
    """How many tokens were read and written; ``prompts`` has one answer to each prompt."""
    read = sum(len(one.prompt_ids) for one in prompts)
    kept = sum(len(one.prompt_ids) - one.timings.prefill_tokens for one in prompts)
    written = sum(len(one.ids) for one in done)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": kept},
    }
