"""The turns of a client's requests while another client is there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cutaway.serve.api_error import APIError
from cutaway.serve.operations import access
from cutaway.serve.operations.access import AccessPolicy, AuthMiddleware, Pace
from cutaway.serve.operations.api_keys import KeyRing
from cutaway.serve.operations.metrics import Metrics
from cutaway.serve.operations.request_record import RequestRecord


class Clock:
    """Time that passes while it is slept away."""

    timeout = staticmethod(asyncio.timeout)

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(access, "time", made)
    monkeypatch.setattr(access, "asyncio", made)
    return made


def test_a_client_that_is_alone_never_waits(clock: Clock) -> None:
    pace = Pace()
    assert [pace.wait("a", 2 << 20) for _ in range(1000)] == [0.0] * 1000


def test_beside_another_its_requests_have_turns_after_a_burst(clock: Clock) -> None:
    pace = Pace(requests=100, burst=0.2)
    pace.wait("b", 0)
    waits = [pace.wait("a", 0) for _ in range(120)]
    assert waits[:21] == [0.0] * 21 and waits[21:] == pytest.approx([0.01 * n for n in range(1, 100)])
    assert pace.wait("b", 0) == 0.0, "the other has turns of its own"
    clock.now += 0.5
    assert pace.wait("a", 0) == pytest.approx(0.5), "half of them have had theirs"
    clock.now += 5
    assert pace.wait("a", 0) == 0.0, "all have, and the other is gone"


def test_a_long_body_takes_turns_by_its_bytes(clock: Clock) -> None:
    pace = Pace(requests=100, bytes=1e6, burst=0.0)
    pace.wait("b", 0)
    assert [pace.wait("a", 500_000) for _ in range(3)] == pytest.approx([0.0, 0.51, 1.02])


def test_who_would_wait_too_long_is_refused_after_the_longest_wait(clock: Clock) -> None:
    async def ask() -> None:
        await pace.turn("a", 1_000_000)

    pace = Pace(bytes=1e5, burst=0.0, most=5.0)
    pace.wait("b", 0)
    asyncio.run(ask())
    pace.wait("b", 0)
    with pytest.raises(APIError, match="faster than it can be answered") as refused:
        asyncio.run(ask())
    assert refused.value.status == 429 and refused.value.retry_after == 6 and clock.slept == [5.0]


def test_clients_that_are_gone_are_forgotten_and_those_under_way_are_not(clock: Clock) -> None:
    async def hold() -> None:
        with pace.present("stream"):
            await pace.turn("stream", 0)
            for n in range(500):
                clock.now += 2 * (n == 0 or n % 10 == 0)
                pace.wait(f"client {n}", 0)
            assert "stream" in pace._seen and len(pace._seen) < 30 and len(pace._present) < 30
            assert [pace.wait("a", 0) for _ in range(30)][-1] > 0, "beside the stream"

    pace = Pace()
    asyncio.run(hold())


@pytest.mark.parametrize("key", ["the-right-key-of-all", "a-wrong-key-of-none"])
def test_a_request_waits_before_its_body_is_read_and_before_it_is_refused(clock: Clock, key: str) -> None:
    """A flood of bodies, or of wrong keys, would hold up others by being read and answered."""
    happened: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        happened.append("answered")

    async def receive() -> dict[str, Any]:
        happened.append("read")
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            happened.append(str(message["status"]))

    async def sleep(seconds: float) -> None:
        happened.append("waits")

    clock.sleep = sleep  # type: ignore[method-assign]
    guard = AuthMiddleware(app, AccessPolicy(hosts=None, keys=KeyRing(["the-right-key-of-all"])))
    guard.pace = Pace(burst=0.0)
    guard.pace.wait("b", 0)
    headers = [(b"authorization", f"Bearer {key}".encode()), (b"content-length", b"2")]
    for _ in range(2):
        record = RequestRecord("id", "POST", "/v1/completions", Metrics(), "10.0.0.1")
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
        asyncio.run(guard({**scope, "record": record}, receive, send))
    one = ["read", "answered"] if key.startswith("the-right") else ["401"]
    assert happened == [*one, "waits", *one]
