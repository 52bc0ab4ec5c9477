"""Tokens in OpenAI's JSON, with their log-probabilities and internals, and its words for an answer's end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cutaway.generate.batch.request import Generation, Piece
from cutaway.tokenizer import Tokenizer

MIN_LOGPROB = -9999.0  # OpenAI's logarithm of zero, which JSON has no number for
ENDED = {"stop": "stop", "length": "length", "context": "length"}  # what OpenAI calls an answer's end
Scored = tuple[int, float, Sequence[tuple[int, float]]]  # an id, its log-probability, the alternatives


def scored(piece: Piece) -> Scored:
    """The token that a piece added."""
    assert piece.id is not None
    assert piece.logprob is not None
    return piece.id, piece.logprob, piece.top_logprobs


def token_logprobs(tokenizer: Tokenizer, one: Scored, by_id: bool = False) -> dict[str, Any]:
    """A token of a chat's answer with its top alternatives; ``by_id``: each with its id, as llama.cpp's."""

    def token(id: int, value: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(id)
        text = data.decode("utf-8", "replace")
        found = {"token": text, "logprob": max(value, MIN_LOGPROB), "bytes": list(data)}
        return found | ({"id": id} if by_id else {})

    id, logprob, others = one
    return token(id, logprob) | {"top_logprobs": [token(*one) for one in others]}


def end_token(generation: Generation | None) -> tuple[int, float] | None:
    """The end token that a finished text chose, with its log-probability; None where it ended otherwise."""
    if generation is None or not isinstance(generation.stop, int) or generation.stop_logprob is None:
        return None
    return generation.stop, generation.stop_logprob


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
