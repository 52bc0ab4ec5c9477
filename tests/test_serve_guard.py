"""The gate: hosts, pages of other sites, keys, bodies that are too long or too slow, and what headers say."""

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests import serving
from tests.serving import AccessPolicy, Server
from tests.waiting import wait_until

from cutaway.serve.operations.api_keys import KeyRing  # isort: skip

KEY, OTHER = "correct horse battery", "staple, another one"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Small limits, two origins and a short time for bodies."""
    policy = AccessPolicy(origins=("http://good.example",), body_bytes=2000, body_seconds=1.0)
    with serving.running(
        serving.model(), policy, max_sequences=1, max_queue=1, request_seconds=2.0
    ) as server:
        yield server


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    with serving.running(serving.model(), AccessPolicy(hosts=None, keys=KeyRing((KEY, OTHER)))) as server:
        yield server


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST:8000", "[::1]:80"])
def test_hosts_that_are_meant(server: Server, host: str) -> None:
    assert server.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "", "[::2]", "::1"])
def test_a_name_that_was_made_to_point_here_is_not_answered(server: Server, host: str) -> None:
    assert code(server.get("/v1/models", headers={"Host": host})) == (403, "wrong_host")


def test_other_sites_pages_may_not_ask(server: Server) -> None:
    body = {"prompt": "x", "max_tokens": 1}
    for origin in ("http://evil.example", "null", "http://127.0.0.1", "file://"):
        assert code(server.post("/v1/completions", body, headers={"Origin": origin})) == (403, "wrong_origin")
    own = server.post("/v1/completions", body, headers={"Origin": server.url})
    assert own.status_code == 200
    assert "access-control-allow-origin" not in own.headers
    named = server.post("/v1/completions", body, headers={"Origin": "http://good.example"})
    assert named.status_code == 200 and named.headers["access-control-allow-origin"] == "http://good.example"


def test_what_a_page_could_send_unasked_is_refused(server: Server) -> None:
    raw = b'{"prompt": "x"}'
    form = "application/x-www-form-urlencoded"

    def sent(kind: str, **headers: str) -> serving.httpx.Response:
        own = {"content-type": kind} | headers
        return serving.httpx.post(server.url + "/v1/completions", content=raw, headers=own)

    for kind in ("text/plain", "application/jsonp"):
        assert code(sent(kind)) == (415, "not_json")
    assert sent("").status_code == 200  # no type at all is JSON; a page's would come with its origin
    assert code(sent("", origin="http://evil.example")) == (403, "wrong_origin")
    for browser in ({"origin": server.url}, {"sec-fetch-site": "same-origin"}):
        assert code(sent(form, **browser)) == (415, "not_json")
    assert sent(form).status_code == 200  # `curl -d` without a header, which no browser sent


def test_only_who_knows_the_key_is_heard(locked: Server) -> None:
    for given in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": KEY},
        {"Authorization": "Basic " + KEY},
    ):
        assert code(locked.get("/v1/models", headers=given)) == (401, "invalid_api_key")
        assert code(locked.get("/metrics", headers=given)) == (401, "invalid_api_key")
        assert code(locked.post("/v1/completions", {"prompt": "x"}, headers=given)) == (
            401,
            "invalid_api_key",
        )
    assert locked.get("/v1/models", headers={"Authorization": f"bearer {KEY}"}).status_code == 200
    assert locked.get("/health").status_code == 200
    assert locked.get(
        "/v1/models", headers={"Authorization": f"Bearer {KEY}", "Host": "any.example"}
    ).is_success


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_the_prefix_cache_is_shared_by_one_key_and_salt_alone(path: str, locked: Server) -> None:
    text = f"A text for {path} " + "of many words " * 100

    def cached(key: str, salt: str | None = None) -> int:
        body: dict[str, Any] = {
            "/v1/completions": {"prompt": text, "max_tokens": 1},
            "/v1/chat/completions": {"messages": [{"role": "user", "content": text}], "max_tokens": 1},
            "/v1/responses": {"input": text, "max_output_tokens": 1},
        }[path]
        headers = {"Authorization": f"Bearer {key}"}
        usage = locked.post(path, body | {"cache_salt": salt}, headers=headers).json()["usage"]
        return usage.get("prompt_tokens_details", usage.get("input_tokens_details"))["cached_tokens"]

    scopes = [(KEY, None), (OTHER, None), (KEY, "a"), (OTHER, "a")]
    assert [cached(*scope) for scope in scopes] == [0] * 4
    assert [cached(*scope) for scope in scopes] == [256] * 4
    assert cached(KEY, "b") == 0


def test_every_answer_tells_browsers_to_be_careful(server: Server) -> None:
    for answer in (
        server.get("/health"),
        server.get("/nothing"),
        server.get("/health", headers={"Host": "x"}),
    ):
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"


def test_bodies_that_are_too_long(server: Server) -> None:
    assert code(server.post("/v1/completions", {"prompt": "x" * 3000})) == (413, "body_too_large")
    chunks = (b"x" * 500 for _ in range(10))  # without Content-Length
    answer = serving.httpx.post(
        server.url + "/v1/completions", content=chunks, headers={"content-type": "application/json"}
    )
    assert code(answer) == (413, "body_too_large")


def test_a_body_that_does_not_come_is_not_waited_for(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        slow.sendall(
            b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        answer = http.client.HTTPResponse(slow)
        answer.begin()
        assert answer.status == 408 and json.loads(answer.read())["error"]["code"] == "too_slow"


def test_a_full_queue_and_an_answer_that_takes_too_long(server: Server) -> None:
    scheduler = server.service.scheduler
    assert scheduler is not None
    body = {"prompt": "x", "max_tokens": 8000, "ignore_eos": True, "n": 2, "stream": True}
    with serving.httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=30) as going:
        wait_until(lambda: scheduler.stats().running + scheduler.stats().queued >= 2, "two requests")
        full = server.post("/v1/completions", {"prompt": "x"})
        assert code(full) == (429, "queue_full") and int(full.headers["retry-after"]) > 0
        lines = [line for line in going.iter_lines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "too_slow"  # and no [DONE]
    wait_until(lambda: not scheduler.stats().running + scheduler.stats().queued, "both have left the queue")
    late = server.post("/v1/completions", body | {"n": 1, "stream": False})
    assert code(late) == (504, "too_slow")
    wait_until(lambda: not scheduler.stats().running, "the answer that took too long ends")


def test_a_fault_of_ours_says_nothing_of_its_inside(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("/home/secret")

    monkeypatch.setattr(server.service.lm.tokenizer, "encode", broken)
    answer = server.post("/tokenize", {"text": "x"})
    assert code(answer) == (500, "internal_error") and "secret" not in answer.text
