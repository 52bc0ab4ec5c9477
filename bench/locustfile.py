"""What each user does in bench/serving_users.py: one streamed completion after the other, for locust."""

import json
import os
import time
from itertools import count

from locust import HttpUser, task

TOKENS = int(os.environ["CUTAWAY_BENCH_TOKENS"])
WORDS = ("river", "stone", "lamp", "winter", "copper", "garden", "letter", "shadow", "market", "engine")
numbers = count()


class Reader(HttpUser):
    """Reads whole answers; reports the first token's time, and the answer with its number of tokens."""

    @task
    def completion(self) -> None:
        n, words = next(numbers), len(WORDS)
        text = f"Report {n}: " + " ".join(WORDS[(n * 5 + i * i) % words] for i in range(45)) + ". The"
        body = {"prompt": text, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
        body["stream_options"] = {"include_usage": True}
        began, first, tokens, error = time.perf_counter(), 0.0, 0, None
        self.report("sent", 0.0)  # the first one's time is when it all began
        try:
            sent = {"json": body, "stream": True, "catch_response": True, "timeout": 600}
            with self.client.post("/v1/completions", **sent) as answer:
                answer.success()  # counted below, once it is read
                if answer.status_code != 200:
                    raise ValueError(f"status {answer.status_code}")
                for line in answer.iter_lines():
                    if not line.startswith(b"data: {"):
                        continue
                    event = json.loads(line[6:])
                    if event.get("choices") and not first:
                        first = time.perf_counter() - began
                        self.report("first token", first)
                    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            if tokens != TOKENS:
                raise ValueError(f"{tokens} tokens came")
        except Exception as problem:
            error = problem
        self.report("answer", time.perf_counter() - began, tokens, error)

    def report(self, name: str, seconds: float, tokens: int = 0, error: Exception | None = None) -> None:
        """Count a measurement; tokens are its length."""
        self.environment.events.request.fire(
            request_type="SSE",
            name=name,
            response_time=1000 * seconds,
            response_length=tokens,
            exception=error,
            context={},
        )
