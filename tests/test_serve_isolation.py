"""Requests that run at the same time see nothing of each other: every number equals the solo answer."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from tests import serving
from tests.serving import Server

TEXT = "The capital of France is"
ROUNDS = 6


@pytest.fixture(scope="module", params=["pytorch", "runtime"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving.running(serving.model(engine=request.param), max_queue=256) as server:
        yield server


def completion(prompt: str, **more: Any) -> tuple[str, dict[str, Any]]:
    internals = {"layers": [0, 1], "attention": True, "lens": 3}
    body = {"prompt": prompt, "max_tokens": 5, "temperature": 0, "logprobs": 2, "internals": internals}
    return "/v1/completions", body | more


def trace(text: str, **more: Any) -> tuple[str, dict[str, Any]]:
    values = ["out", "attention.pattern", "attention.q", "mlp.hidden"]
    return "/v1/trace", {"text": text, "values": values, "positions": [-1]} | more


REQUESTS = [
    completion(TEXT),
    completion("One, two, three, four, five, six, seven,"),
    completion("x", temperature=1.0, seed=3),
    trace(TEXT),
    trace("Another text, of another length, that only this client may see"),
    trace(TEXT, edits=[{"kind": "ablate", "layer": 0, "part": "mlp"}]),
    trace(
        TEXT, edits=[{"kind": "patch", "layer": 0, "part": "residual", "text": "The capital of Spain was"}]
    ),
    ("/v1/embeddings", {"input": [TEXT, "a second text"], "pooling": "mean"}),
]


def answered(server: Server, request: tuple[str, dict[str, Any]]) -> Any:
    """The parts of an answer that depend on its request alone: no ids, times or counts of shared pages."""
    path, body = request
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    return document.get("choices") or document.get("values") or document["data"], document.get("next")


def test_concurrent_requests_get_their_solo_answers(server: Server) -> None:
    alone = [answered(server, request) for request in REQUESTS]
    start = Barrier(len(REQUESTS))

    def client(i: int) -> list[Any]:
        start.wait()
        return [answered(server, REQUESTS[i]) for _ in range(ROUNDS)]

    with ThreadPoolExecutor(len(REQUESTS)) as pool:
        for i, own in enumerate(pool.map(client, range(len(REQUESTS)))):
            assert all(one == alone[i] for one in own), REQUESTS[i]
