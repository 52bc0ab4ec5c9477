"""How much a request may ask for. What is above is refused with both numbers."""

from __future__ import annotations

from dataclasses import dataclass

from cutaway.serve.api_error import APIError


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; ``max_tokens`` of an answer, None for as many as the context holds."""

    max_sequences: int = 16
    max_queue: int = 64
    max_tokens: int | None = None
    body_bytes: int = 2 << 20
    request_seconds: float = 600.0
    body_seconds: float = 30.0
    drain_seconds: float = 30.0
    choices: int = 16  # n of one request
    texts: int = 256  # of one request for embeddings, or prompts of one for completions
    trace_tokens: int = 1024
    trace_numbers: int = 4_000_000

    def tokens(self, asked: int | None, prompt: int, context: int, param: str) -> int | None:
        """How many tokens an answer to so long a prompt may have; APIError where that is fewer than asked."""
        if asked is not None and prompt + asked > context:
            raise APIError(
                400,
                f"This model's context holds {context} tokens, and you asked for {prompt + asked}: "
                f"{prompt} in the prompt and {asked} of answer. Ask for less of either",
                param=param,
                code="context_length_exceeded",
            )
        most = self.max_tokens
        if asked is not None and most is not None and asked > most:
            raise APIError(
                400,
                f"{param} is {asked}, and this server answers with at most {most}",
                param=param,
                code="above_limit",
            )
        return most if asked is None else asked

    def of_choices(self, count: int, param: str) -> None:
        """Refuses a request for more answers to a prompt than one may ask for."""
        self._at_most(count, self.choices, "answers to a prompt", param)

    def of_texts(self, count: int, param: str) -> None:
        """Refuses a request with more texts than one may have."""
        self._at_most(count, self.texts, "texts", param)

    def _at_most(self, count: int, most: int, what: str, param: str) -> None:
        if count > most:
            raise APIError(
                400,
                f"This asks for {count} {what}, and one request may ask for {most}",
                param=param,
                code="above_limit",
            )
