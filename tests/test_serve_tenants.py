"""Every route under a key: it needs a role, counts, waits in its key's own turn, off the event loop."""

import asyncio
import json
import logging
import re
import threading
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.routing import APIRoute

from tests import serving
from tests.serving import AccessPolicy, Server
from tests.waiting import wait_until

from cutaway.helper import Bounds, Helper  # isort: skip
from cutaway.serve import app as api  # isort: skip
from cutaway.serve.operations.access import PAGE, PUBLIC  # isort: skip
from cutaway.serve.operations.api_keys import ALL, KeyRing, Tenant, digest  # isort: skip
from cutaway.serve.response_store import Entry  # isort: skip
from cutaway.serve.work_pool import FairPool  # isort: skip

KEYS = {name: f"the-key-of-{name}" for name in ("everything", "another", "nothing", "single")}
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "hi", "max_tokens": 1},
    "/v1/responses": {"input": "hi", "max_output_tokens": 1},
    "/v1/responses/{id}/cancel": {},
    "/v1/conversations": {"items": [{"role": "user", "content": "hi"}]},
    "/v1/conversations/{id}": {"metadata": {"a": "b"}},
    "/v1/conversations/{id}/items": {"items": [{"role": "user", "content": "hi"}]},
    "/v1/messages": CHAT,
    "/v1/messages/count_tokens": {"messages": CHAT["messages"]},
    "/v1/embeddings": {"input": "hi", "pooling": "mean"},
    "/v1/rerank": {"query": "hi", "documents": ["hi"], "pooling": "mean"},
    "/v1/trace": {"text": "hi", "values": ["out"]},
    "/v1/attention": {"text": "hi"},
    "/v1/lens": {"text": "hi"},
    "/v1/attribution": {"text": "hi"},
    "/v1/features": {"text": "hi"},
    "/v1/features/card": {"dictionary": 0, "feature": 0},
    "/v1/divergence": {"text": "hi", "edits": [{"kind": "ablate", "layer": 0}]},
    "/v1/runs/curves": {"runs": ["one"]},
    "/v1/runs/samples": {"run": "one"},
    "/v1/runs/checkpoint": {"run": "one", "step": 2, "text": "hi"},
    "/v1/how/tokenizers": {"text": "hi"},
    "/v1/how/vectors": {"words": ["a", "b", "c"]},
    "/v1/how/mechanisms": {"text": "hi"},
    "/v1/how/architecture": {},
    "/v1/how/alignments": {"text": "hi"},
    "/v1/how/plan": {"text": "hi"},
    "/v1/how/quantized": {"text": "hi", "type": "Q8_0"},
    "/v1/chat/sources": {"messages": CHAT["messages"]},
    "/v1/chat/count": {"messages": CHAT["messages"]},
    "/v1/admin/models/load": {"model": serving.NAME},
    "/v1/admin/models/unload": {"model": serving.NAME},
    "/v1/load_lora_adapter": {"lora_name": "a", "lora_path": "a"},
    "/v1/unload_lora_adapter": {"lora_name": "a"},
    "/v1/responses/input_tokens": {"input": "hi"},
    "/v1/responses/compact": {"input": "hi", "max_output_tokens": 1},
    "/v1/score": {"text_1": "hi", "text_2": "ho", "pooling": "mean"},
    "/completion": {"prompt": "hi", "n_predict": 1},
    "/infill": {"input_prefix": "hi", "input_suffix": "ho", "n_predict": 1},
    "/slots/{id}": {"filename": "one"},
    "/apply-template": {"messages": CHAT["messages"]},
    "/tokenize": {"text": "hi"},
    "/detokenize": {"ids": [1]},
    "/api/chat": CHAT | {"max_tokens": None, "stream": False, "options": {"num_predict": 1}},
    "/api/generate": {"prompt": "hi", "stream": False, "options": {"num_predict": 1}},
    "/api/embed": {"input": "hi", "pooling": "mean"},
    "/api/embeddings": {"prompt": "hi", "pooling": "mean"},
    "/api/show": {},
}


@pytest.fixture(scope="module")
def apps() -> list[Any]:
    """The FastAPI application of the server, which middleware hides."""
    return []


@pytest.fixture(scope="module")
def keys() -> KeyRing:
    ring = KeyRing(tuple(KEYS.values()))
    for name, (_, tenant) in zip(KEYS, ring._given, strict=True):
        tenant.name = name
        tenant.roles = frozenset() if name == "nothing" else ALL
    return ring


@pytest.fixture(scope="module")
def server(keys: KeyRing, apps: list[Any]) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        usual = api._handle_errors
        patch.setattr(api, "_handle_errors", lambda app, service: (apps.append(app), usual(app, service)))
        with serving.running(serving.model(), AccessPolicy(hosts=None, keys=keys)) as server:
            yield server


def bearer(name: str) -> dict[str, Any]:
    return {"Authorization": f"Bearer {KEYS[name]}"}


def tenant_of(keys: KeyRing, name: str) -> Tenant:
    return next(one for one in keys.tenants if one.name == name)


def routes(server: Server) -> list[tuple[str, str]]:
    """The method and path of all that the OpenAPI document has, but for what needs no key."""
    paths = server.get("/openapi.json", headers=bearer("everything")).json()["paths"]
    return [(method.upper(), path) for path, own in paths.items() for method in own if path not in PUBLIC]


def body_of(path: str) -> dict[str, Any]:
    """A small body for a route that is posted to."""
    assert path in BODIES, f"{path}: give it a small body in BODIES (docs/adding-a-route.md, part 3)"
    return BODIES[path]


def ask(server: Server, method: str, path: str, name: str) -> Any:
    """A small request to a route; what it names is not there."""
    body = body_of(path) if method == "POST" else None
    at = server.url + re.sub(r"\{\w+\}", "none", path)
    return serving.httpx.request(method, at, json=body, headers=bearer(name), timeout=60)


# ---- every route -------------------------------------------------------------------------------------------


def test_every_route_needs_a_role_and_counts(server: Server, apps: list[Any], keys: KeyRing) -> None:
    documented = routes(server)
    assert len(documented) > 35 and ("GET", "/openapi.json") in documented
    free = (*PUBLIC, f"{PAGE}explain.html", f"{PAGE}{{name:path}}")  # without a key
    own = [route for route in apps[0].routes if isinstance(route, APIRoute) and route.path not in free]
    assert len(own) == len(apps[0].routes) - len(free)
    known = {(method, route.path.replace(":path", "")) for route in own for method in route.methods}
    assert known - {(method, path.removeprefix("/v1")) for method, path in documented} <= set(documented)
    everything, nothing = tenant_of(keys, "everything"), tenant_of(keys, "nothing")
    for method, path in documented:
        refused = ask(server, method, path, "nothing")
        assert refused.status_code == 403 and "has not the role" in refused.text, (method, path, refused.text)
        before = everything.used["requests"]
        answer = ask(server, method, path, "everything")
        assert answer.status_code < 500, (method, path, answer.text)
        wait_until(lambda: not (everything.running or everything.beside), f"{method} {path} ends")
        assert everything.used["requests"] == before + 1, (method, path)
    assert not nothing.used


def test_every_route_waits_behind_its_own_key_alone(server: Server) -> None:
    """While one key's work occupies its share of threads, all its routes wait, and another's are answered."""
    pool, free, begun = server.service.pool, threading.Event(), threading.Semaphore(0)

    def occupy() -> None:
        begun.release()
        free.wait()

    documented = routes(server)
    blockers = [
        threading.Thread(target=lambda: asyncio.run(pool.run("key everything", 600, occupy)))
        for _ in range(pool._share)
    ]
    with ThreadPoolExecutor(len(documented)) as clients:
        try:
            for one in blockers:
                one.start()
            assert all(begun.acquire(timeout=20) for _ in blockers)
            slow = [clients.submit(ask, server, *one, "everything") for one in documented]
            for one in documented:
                assert ask(server, *one, "another").status_code < 500, one
            wait_until(lambda: pool._queue.count("key everything") == len(documented), "all of them wait")
            assert not [one for one, answer in zip(documented, slow, strict=True) if answer.done()]
        finally:
            free.set()
        assert all(answer.result(60).status_code < 500 for answer in slow)
    for one in blockers:
        one.join(20)


def test_nothing_but_the_fair_pool_works_beside_the_loop(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any) -> None:
        raise AssertionError("work outside of the fair pool")

    monkeypatch.setattr(asyncio, "to_thread", refuse)
    schema = {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 2}
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}
    thread = {"thread": {"type": "create"}, "max_tokens": 9}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", form | {"max_tokens": 9}),
        ("/v1/completions", form | {"max_tokens": 9}),
        ("/v1/messages", thread),
        ("/v1/responses", {}),
        ("/api/chat", {"format": schema}),
    ]
    for path, more in asked:
        for stream in (False, True):
            body = body_of(path) | more | {"stream": stream}
            answer = server.post(path, body, headers=bearer("another"))
            assert answer.status_code == 200 and "internal" not in answer.text, (path, answer.text)


def test_a_client_leaves_half_of_the_threads() -> None:
    pool, free, begun = FairPool(4, "test", 16), threading.Event(), threading.Semaphore(0)

    def occupy() -> str:
        begun.release()
        return str(free.wait())

    async def work() -> None:
        first = [asyncio.create_task(pool.run("a", 60, occupy)) for _ in range(5)]
        await asyncio.sleep(0)
        assert await pool.run("b", 60, lambda: "b") == "b" and await pool.run("c", 60, lambda: "c") == "c"
        assert begun.acquire(timeout=20) and begun.acquire(timeout=20) and not begun.acquire(blocking=False)
        free.set()
        assert await asyncio.gather(*first) == ["True"] * 5

    try:
        asyncio.run(work())
    finally:
        free.set()


def test_a_helper_at_work_has_another_answer() -> None:
    helper = Helper("cutaway.generate.grammar_compiler", "the grammar", Bounds(2.0, 64 << 20), 30.0, more=1)
    try:
        assert helper.other is not None and helper.other.other is None
        with helper.lock:
            assert "compiled" in helper.ask({"kind": "regex", "text": "a"})
        assert helper.process is None and helper.other.process is not None
        assert "compiled" in helper.ask({"kind": "regex", "text": "a"}) and helper.process is not None
    finally:
        helper.close()
    assert helper.process is None and helper.other.process is None


# ---- what counts -------------------------------------------------------------------------------------------

LONG = {"prompt": "one two three", "max_tokens": 4000, "ignore_eos": True, "stream": True}


def spent(keys: KeyRing, name: str = "single") -> tuple[int, int]:
    used = tenant_of(keys, name).used
    return used["prompt_tokens"], used["generated_tokens"]


def counted(keys: KeyRing, work: Any) -> tuple[int, int]:
    """How many tokens of prompts and answers the work cost its key, when nothing of it is under way."""
    tenant, before = tenant_of(keys, "single"), spent(keys)
    work()
    wait_until(lambda: not (tenant.running or tenant.beside), "what the key asked for ends")
    return spent(keys)[0] - before[0], spent(keys)[1] - before[1]


def test_every_way_of_using_the_model_counts_its_tokens(server: Server, keys: KeyRing) -> None:
    text = "The capital of France is"
    ids = len(server.service.lm.ids(text))

    def post(path: str, body: dict[str, Any]) -> Any:
        answer = server.post(path, body, headers=bearer("single"))
        assert answer.status_code == 200, answer.text
        return answer

    vectors = {"input": [text, text], "pooling": "mean"}
    patch = {"kind": "patch", "layer": 0, "text": text, "positions": [0]}
    ablate = {"kind": "ablate", "layer": 0, "part": "mlp"}
    several = {"prompt": text, "max_tokens": 3, "n": 2, "ignore_eos": True}
    asked: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
        ("/v1/completions", several, (ids, 6)),
        ("/v1/completions", several | {"prompt": [text, text]}, (2 * ids, 12)),
        ("/v1/completions", several | {"max_tokens": 0, "echo": True}, (ids, 0)),
        ("/v1/completions", several | {"max_tokens": 0, "echo": True, "stream": True}, (ids, 0)),
        ("/v1/completions", several | {"edits": [ablate]}, (ids, 6)),
        ("/v1/completions", several | {"n": 1, "edits": [patch]}, (2 * ids, 3)),
        ("/v1/embeddings", vectors, (2 * ids, 0)),
        ("/api/embed", vectors, (2 * ids, 0)),
        ("/v1/rerank", {"query": text, "documents": [text], "pooling": "mean"}, (2 * ids, 0)),
        ("/v1/trace", {"text": text, "values": ["out"]}, (ids, 0)),
        ("/v1/trace", {"text": text, "values": ["out"], "edits": [patch]}, (2 * ids, 0)),
        ("/tokenize", {"text": text}, (0, 0)),
    ]
    for path, body, wanted in asked:
        assert counted(keys, lambda path=path, body=body: post(path, body)) == wanted, (path, body)


def test_what_was_cut_off_counts_as_the_scheduler_counts_it(server: Server, keys: KeyRing) -> None:
    stats = server.service.decoder.stats

    def leave(body: dict[str, Any], lines: int) -> None:
        url, headers = server.url + "/v1/completions", bearer("single")
        with serving.httpx.stream("POST", url, json=body, headers=headers, timeout=30) as going:
            for _ in zip(range(lines), going.iter_lines(), strict=False):
                pass

    for body, lines in ((LONG, 9), (LONG | {"prompt": "word " * 4000}, 0), (LONG | {"prompt": "x"}, 1)):
        before = stats()
        cost = counted(keys, lambda body=body, lines=lines: leave(body, lines))
        after = stats()
        assert cost == (
            after.prompt_tokens - before.prompt_tokens,
            after.generated_tokens - before.generated_tokens,
        )
        assert cost[1] >= lines // 3


def test_a_background_answer_takes_its_keys_place_counts_and_is_logged(
    server: Server, keys: KeyRing, caplog: pytest.LogCaptureFixture
) -> None:
    tenant, body = tenant_of(keys, "single"), {"input": "hi", "background": True, "max_output_tokens": 4000}
    tenant.concurrent = 1

    def work() -> None:
        made = server.post("/v1/responses", body, headers=bearer("single")).json()
        refused = server.post("/v1/completions", BODIES["/v1/completions"], headers=bearer("single"))
        assert refused.status_code == 429 and "1 requests at once" in refused.text
        wait_until(lambda: server.service.decoder.stats().generated_tokens > before, "it is written")
        at = f"{server.url}/v1/responses/{made['id']}"
        found = serving.httpx.get(
            at, headers=bearer("single"), timeout=30
        )  # beside it, in a place of its own
        assert found.json()["status"] == "in_progress"
        stopped = serving.httpx.post(f"{at}/cancel", json={}, headers=bearer("single"), timeout=30)
        assert stopped.json()["status"] == "cancelled"

    before = server.service.decoder.stats().generated_tokens
    try:
        with caplog.at_level(logging.INFO, "cutaway.serve"):
            prompt, generated = counted(keys, work)
    finally:
        tenant.concurrent = None
    assert prompt > 0 and generated == server.service.decoder.stats().generated_tokens - before > 0
    lines = [record for record in caplog.records if record.getMessage() == "background answer"]
    assert [(one.fields["prompt"], one.fields["generated"]) for one in lines] == [(prompt, generated)]
    assert (
        not tenant.running
        and server.post("/v1/completions", BODIES["/v1/completions"], headers=bearer("single")).is_success
    )


def test_what_is_named_brings_no_more_than_a_body_may(server: Server) -> None:
    most, headers = server.service.limits.body_bytes, bearer("single")
    text = "word " * (most // 16)
    item = {"role": "user", "content": text}
    made = server.post("/v1/conversations", {"items": [item]}, headers=headers).json()
    at = f"/v1/conversations/{made['id']}/items"
    codes = [server.post(at, {"items": [item]}, headers=headers).status_code for _ in range(4)]
    assert codes[0] == 200 and codes[-1] == 413
    entry = Entry("item", {"type": "message", **item})
    server.service.store.put(digest(KEYS["single"]), {"item-1": entry})
    references = [{"type": "item_reference", "id": "item-1"}] * 20
    for path, body in (
        ("/v1/responses", {"input": references}),
        ("/v1/conversations", {"items": references}),
    ):
        refused = server.post(path, body, headers=headers)
        assert refused.status_code == 413 and "referred to" in refused.text


def test_an_id_of_another_kind_is_not_found(server: Server) -> None:
    headers = bearer("single")

    def post(path: str, body: dict[str, Any]) -> Any:
        return serving.httpx.post(server.url + path, content=json.dumps(body), headers=headers, timeout=60)

    answer = post("/v1/responses", BODIES["/v1/responses"]).json()
    talk = post("/v1/conversations", BODIES["/v1/conversations"]).json()
    thread = post("/v1/messages", CHAT | {"thread": {"type": "create"}}).json()
    ids = {"response": answer["id"], "item": answer["output"][0]["id"]}
    ids |= {"conversation": talk["id"], "thread": thread["id"], "none": "none"}
    ids |= {"with a NUL": f"{talk['id']}\0", "half a pair": "\ud800"}
    named: dict[str, Any] = {
        "response": lambda id: {"input": "hi", "max_output_tokens": 1, "previous_response_id": id},
        "conversation": lambda id: {"input": "hi", "max_output_tokens": 1, "conversation": id},
        "item": lambda id: {"input": [{"type": "item_reference", "id": id}], "max_output_tokens": 1},
    }
    for wanted, body in named.items():
        for kind, id in ids.items():
            found = post("/v1/responses", body(id))
            assert found.status_code == (200 if kind == wanted else 400), (wanted, kind, found.text)
            assert kind == wanted or f"There is no {wanted}" in found.text
    for kind, id in ids.items():
        if kind == "half a pair":  # which no path can have
            continue
        going_on = {"thread": {"type": "continue", "previous_message_id": id}}
        assert post("/v1/messages", CHAT | going_on).status_code == (200 if kind == "thread" else 404), kind
        id = urllib.parse.quote(id)
        for path in ("/v1/responses/{}", "/v1/responses/{}/input_items"):
            found = server.get(path.format(id), headers=headers)
            assert found.status_code == (200 if kind == "response" else 404), (path, kind)
        for path in ("/v1/conversations/{}", "/v1/conversations/{}/items"):
            found = server.get(path.format(id), headers=headers)
            assert found.status_code == (200 if kind == "conversation" else 404), (path, kind)
    wrong = server.get(f"/v1/conversations/{talk['id']}/items?limit=many", headers=headers)
    assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "limit"
