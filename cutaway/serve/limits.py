"""The bounds of a server, and the refusal of what is above them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cutaway.generate.batch.scheduler import Scheduler
from cutaway.generate.engine import Engine
from cutaway.serve.api_error import APIError, ContextError
from cutaway.tokenizer import Tokenizer

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; ``max_tokens`` of an answer, None for as many as the context holds."""

    max_sequences: int = 16
    max_queue: int = 512
    max_tokens: int | None = None
    body_bytes: int = 2 << 20
    request_seconds: float = 600.0
    body_seconds: float = 30.0
    drain_seconds: float = 30.0
    state_bytes: int | None = None  # of KV cache; None for what the longest texts take, or half of the memory
    choices: int = 16  # n of one request
    texts: int = 256  # prompts of one request for completions
    inputs: int = 2048  # texts of one request for embeddings
    trace_tokens: int = 8192
    trace_numbers: int = 4_000_000

    def scheduler(self, engine: Engine, tokenizer: Tokenizer) -> Scheduler:
        """A scheduler within these limits."""
        return Scheduler(
            engine,
            tokenizer,
            max_sequences=self.max_sequences,
            max_queue=self.max_queue,
            state_bytes=self.state_bytes,
        )

    def tokens(self, asked: int | None, prompt: int, context: int, param: str) -> int | None:
        """An answer's max_tokens after so long a prompt: what was asked for, or what the context has room
        for. APIError for more than the server's limit, and for a prompt that leaves no room.
        """
        least = prompt + (asked != 0)
        if least > context:
            raise ContextError(prompt, least - prompt, context, param)
        most = self.max_tokens
        if asked is not None and most is not None and asked > most:
            text = f"{param} is {asked}, and this server answers with at most {most}"
            raise APIError(400, text, param=param, code="above_limit")
        return most if asked is None else min(asked, context - prompt)

    def check_choices(self, count: int, param: str) -> None:
        """Refuse a request for too many answers to a prompt."""
        _at_most(count, self.choices, "answers to a prompt", param)

    def check_texts(self, count: int, param: str) -> None:
        """Refuse a request with too many texts to complete."""
        _at_most(count, self.texts, "texts", param)

    def check_inputs(self, count: int, param: str) -> None:
        """Refuse a request with too many texts to embed."""
        _at_most(count, self.inputs, "texts", param)


def _at_most(count: int, most: int, what: str, param: str) -> None:
    if count > most:
        text = f"This asks for {count} {what}, and one request may ask for {most}"
        raise APIError(400, text, param=param, code="above_limit")
