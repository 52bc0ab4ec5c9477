"""What an operator relies on: keys, quotas, proxies, a stop that ends no answer midway, logs and metrics."""

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cutaway.errors import UserError
from tests import inputs, serving
from tests.serving import AccessPolicy, Connections, Server, certificate
from tests.waiting import wait_until

from cutaway.serve import routes  # isort: skip
from cutaway.serve.operations import bounded_log  # isort: skip
from cutaway.serve.operations.models import Model  # isort: skip
from cutaway.serve.operations.tracing import Tracing  # isort: skip
from cutaway.serve.service import Service, warm_up  # isort: skip
from cutaway.serve.operations.api_keys import KeyRing, fingerprint  # isort: skip

ADMIN, ALICE, BOB, NEW = "the-admins-key", "the-key-of-alice", "the-key-of-bob", "the-new-key-of-alice"
CAROL = "the-key-of-carol"
FILE = f"""
keys:
  - {{name: admin, key: {ADMIN}, roles: [admin, metrics]}}
  - {{name: alice, key: {ALICE}, roles: [chat, embed, internals], tokens_per_minute: 20}}
  - {{name: bob, key: {BOB}, requests_per_minute: 2, concurrent: 1, priority: 3}}
  - {{name: carol, key: {CAROL}, roles: [chat]}}
"""
DEPLOY = Path(__file__).parent.parent / "deploy"
BY = re.compile(r"by \((.+?)\)")
LONG = {"prompt": "x", "max_tokens": 4000, "ignore_eos": True}
TWO = LONG | {"max_tokens": 2}


def bearer(key: str) -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {key}"}}


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def keys(file: Path) -> KeyRing:
    return KeyRing((), file)


@pytest.fixture(scope="module")
def server(keys: KeyRing) -> Iterator[Server]:
    policy = AccessPolicy(hosts=None, keys=keys, root_path="/llm")
    with serving.running(serving.model(), policy, Connections(proxies=("127.0.0.0/8",))) as server:
        yield server


# ---- keys --------------------------------------------------------------------------------------------------


def test_roles(server: Server) -> None:
    text, trace = {"prompt": "x", "max_tokens": 1}, {"text": "x", "values": ["out"]}
    assert code(server.post("/v1/completions", text, **bearer(ADMIN))) == (403, "missing_role")
    assert code(server.post("/v1/trace", trace, **bearer(BOB))) == (403, "missing_role")
    asked = text | {"internals": {"layers": [0]}}
    assert code(server.post("/v1/completions", asked, **bearer(BOB))) == (403, "missing_role")
    assert code(server.get("/metrics", **bearer(ALICE))) == (403, "missing_role")
    assert server.get("/v1/models", **bearer(ADMIN)).is_success


def test_quotas_and_usage(server: Server, keys: KeyRing) -> None:
    body = {"prompt": "one two three four", "max_tokens": 19, "ignore_eos": True}
    first = server.post("/v1/completions", body, **bearer(ALICE))
    assert first.is_success
    refused = server.post("/v1/completions", body, **bearer(ALICE))
    assert code(refused) == (429, "quota_exceeded") and 1 <= int(refused.headers["retry-after"]) <= 60
    own = server.get("/v1/usage", **bearer(ALICE)).json()["data"]
    used = first.json()["usage"]
    assert [one["name"] for one in own] == ["alice"] and own[0]["generated_tokens"] == 19
    assert own[0]["prompt_tokens"] == used["prompt_tokens"] and own[0]["running"] == 0
    assert {one["name"] for one in server.get("/v1/usage", **bearer(ADMIN)).json()["data"]} == {
        "admin",
        "alice",
        "bob",
        "carol",
    }
    text = server.get("/metrics", **bearer(ADMIN)).text
    assert 'cutaway_key_generated_tokens_total{key="alice"} 19.0' in text and ALICE not in text
    bob = next(one for one in keys.tenants if one.name == "bob")
    bob.requests.level = 0.0
    with serving.httpx.stream(
        "POST", server.url + "/v1/completions", json=LONG | {"stream": True}, timeout=30, **bearer(BOB)
    ) as going:
        lines = going.iter_lines()
        next(lines)
        at_once = server.post("/v1/completions", body, **bearer(BOB))
        assert code(at_once) == (429, "quota_exceeded") and "1 requests at once" in at_once.text
        assert server.service.decoder.stats().running == 1
    wait_until(lambda: not bob.running, "the answer of a client that left ends")
    assert bob.used["generated_tokens"] > 0  # of an answer that its client cut off
    small = body | {"max_tokens": 1}
    assert server.post("/v1/completions", small, **bearer(BOB)).is_success
    assert "2 requests a minute" in server.post("/v1/completions", small, **bearer(BOB)).text


def test_a_key_has_its_own_turn_priority_and_prefix_cache(
    server: Server, keys: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    submit = server.service.decoder.submit
    monkeypatch.setattr(
        server.service.decoder, "submit", lambda asked: (seen.append(asked), submit(asked))[1]
    )
    next(one for one in keys.tenants if one.name == "bob").requests.level = 0.0
    for key in (BOB, CAROL, CAROL):
        assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 1}, **bearer(key)).is_success
    bob, carol, again = seen
    assert (bob.client, bob.priority, carol.client, carol.priority) == ("key bob", 3, "key carol", 0)
    assert bob.cache_scope != carol.cache_scope == again.cache_scope


def test_keys_rotate_without_forgetting_what_was_used(server: Server, keys: KeyRing, file: Path) -> None:
    before = server.get("/v1/usage", **bearer(ALICE)).json()["data"][0]["generated_tokens"]
    try:
        file.write_text(FILE.replace(ALICE, f"[{NEW}, {ALICE}]"))
        keys.load()
        assert server.get("/v1/models", **bearer(ALICE)).is_success
        file.write_text(FILE.replace(ALICE, NEW))
        keys.load()
        assert server.get("/v1/models", **bearer(ALICE)).status_code == 401
        assert server.get("/v1/usage", **bearer(NEW)).json()["data"][0]["generated_tokens"] == before
        for wrong in (FILE.replace("bob,", "alice,"), FILE.replace("chat", "chats"), "keys: []", "short", ""):
            file.write_text(wrong)
            with pytest.raises(UserError):
                keys.load()
            assert server.get("/v1/models", **bearer(NEW)).is_success
    finally:
        file.write_text(FILE)
        keys.load()


def test_a_file_of_lines_and_of_hashes(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"{ALICE}\n{BOB}\n")
    assert [one.name for one in KeyRing((), path).tenants] == ["secret-1", "secret-2"]
    import hashlib

    path.write_text(f"keys: [{{name: a, sha256: {hashlib.sha256(ALICE.encode()).hexdigest()}}}]")
    ring = KeyRing((), path)
    found = ring.find(ALICE)
    assert found is not None and found.name == "a" and ring.find(BOB) is None
    hashed = hashlib.sha256(ALICE.encode()).hexdigest()
    path.write_text(f"keys: [{{name: a, key: {BOB}, sha256: {hashed}}}]")  # both are keys of the one client
    ring = KeyRing((), path)
    assert ring.find(ALICE) is ring.find(BOB) is not None and len(ring.tenants) == 1


WRONG_LINES = {
    "three words": (f"{ALICE}\nmy secret passphrase\n", "line 2"),
    "a comment": (f"# of alice\n{ALICE}\n", "line 1"),
    "a comment in one word": (f"{ALICE}\n\n#the-comment\n", "line 3"),
    "a pair of YAML": (f"key: {ALICE}", "line 1"),
    "a pair without a blank": (f"key:{ALICE}", "line 1"),
    "a list of YAML": (f"- {ALICE}\n- {BOB}", "line 1"),
    "a text of JSON": (f'"{ALICE}"', "line 1"),
    "a list of JSON": (f'["{ALICE}"]', "line 1"),
    "JSON of other names": (f'{{"api_keys": ["{ALICE}"]}}', "keys"),
    "keys with commas": (f"{ALICE},{BOB}", "line 1"),
    "a short one": (f"{ALICE}\nshort\n", "line 2"),
    "one twice": (f"{ALICE}\n{BOB}\n{ALICE}\n", "line 3 is the key of line 1"),
    "a key of two names": (
        f"keys: [{{name: a, key: {ALICE}}}, {{name: b, key: {ALICE}}}]",
        "b has a key that a",
    ),
    "a key that is given too": (f"keys: [{{name: a, key: {CAROL}}}]", "--api-key"),
    "lists inside lists": ("keys: " + "[" * 5000 + ALICE + "]" * 5000, "neither YAML"),
    "an alias inside itself": (f"keys: &keys [*keys, {ALICE}]", "neither YAML"),
    "roles twice": (
        f"keys:\n- {{name: a, key: {ALICE}}}\n- {{name: b, key: {BOB}, roles: [chat],\n   roles: [admin]}}",
        "line 4: the name of this entry is there already",
    ),
    "keys twice": (
        f"keys:\n- {{name: a, key: {ALICE}}}\nkeys:\n- {{name: b, key: {BOB}}}",
        "line 3: the name",
    ),
    "a key as a name twice": (f"keys: [{{name: a, {ALICE}: 1, {ALICE}: 2}}]", "line 1: the name"),
    "roles twice in JSON": (
        f'{{"keys": [{{"name": "a", "key": "{ALICE}", "roles": [], "roles": []}}]}}',
        "line 1",
    ),
    "a line that is given too": (f"{ALICE}\n{CAROL}\n", "--api-key"),
}


@pytest.mark.parametrize("name", WRONG_LINES)
def test_a_file_of_anything_but_one_key_a_line_is_refused(name: str, tmp_path: Path) -> None:
    text, why = WRONG_LINES[name]
    path = tmp_path / "secret"
    path.write_text(text)
    with pytest.raises(UserError, match=why) as refused:
        KeyRing((CAROL,), path)
    assert not any(key in str(refused.value) for key in (ALICE, BOB, CAROL, "passphrase"))


def test_lines_may_be_empty_and_json_is_yaml(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(f"\ufeff{ALICE}\r\n\r\n  {BOB}  \n")
    ring = KeyRing((), path)
    assert [one.name for one in ring.tenants] == ["secret-1", "secret-2"] and ring.find(BOB)
    path.write_text(json.dumps({"keys": [{"name": "a", "key": [ALICE, BOB]}]}))
    ring = KeyRing((), path)
    assert [one.name for one in ring.tenants] == ["a"] and ring.find(ALICE) is ring.find(BOB)
    with pytest.raises(UserError, match="given twice"):
        KeyRing((ALICE, ALICE))


def test_a_wrong_key_learns_how_and_the_document_declares_it(server: Server) -> None:
    refused = server.get("/v1/models")
    assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Bearer")
    document = server.get("/openapi.json", **bearer(ADMIN)).json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "x-api-key"}
    assert document["security"] and document["paths"]["/health"]["get"]["security"] == []


# ---- proxies -----------------------------------------------------------------------------------------------


def test_forwarded_addresses_count_from_trusted_proxies_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def clients(proxies: tuple[str, ...], *given: str) -> list[str]:
        seen.clear()
        with serving.running(serving.model(), connections=Connections(proxies=proxies)) as server:
            submit = server.service.decoder.submit
            monkeypatch.setattr(
                server.service.decoder, "submit", lambda asked: (seen.append(asked.client), submit(asked))[1]
            )
            for forwarded in given:
                sent = {"headers": {"X-Forwarded-For": forwarded}}
                assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 1}, **sent).is_success
        return list(seen)

    given = ("9.9.9.9", "6.6.6.6, 9.9.9.9, 127.0.0.3")
    assert clients(("127.0.0.0/8",), *given) == ["9.9.9.9", "9.9.9.9"]
    assert clients(("10.0.0.1",), *given) == ["127.0.0.1", "127.0.0.1"]
    written = {
        "9.9.9.9:80": "9.9.9.9",
        "[2001:db8:0::1]:80": "2001:db8::1",
        "2001:DB8::1": "2001:db8::1",
        "1.2.3.4 key=root status=200": "127.0.0.1",
        "1.2.3.4\tkey=root": "127.0.0.1",
        "1.2.3.4:80 key=root": "127.0.0.1",
        "fe80::1%1 key=root": "127.0.0.1",
        "[fe80::1%1 key=root]:9": "127.0.0.1",
        "9" * 5000: "127.0.0.1",
        "a name": "127.0.0.1",
        "6.6.6.6, unknown, 127.0.0.3": "127.0.0.3",
        "unknown, 9.9.9.9": "9.9.9.9",
    }
    assert clients(("127.0.0.0/8",), *written) == list(written.values())


def test_a_field_of_the_log_cannot_look_like_several(capsys: pytest.CaptureFixture[str]) -> None:
    handler = bounded_log.BoundedHandler()
    fields = {
        "client": "1.2.3.4 key=root",
        "model": 'a"b\\',
        "error": "x\n2026 info y",
        "key": "k\xfc",
        "status": 200,
    }
    handler.emit(logging.makeLogRecord({"msg": "request", "levelname": "INFO", "fields": fields}))
    line = capsys.readouterr().err
    assert line.endswith(
        r""" info request client="1.2.3.4 key=root" model="a\"b\\" error="x\n2026 info y" key=k"""
        "\xfc status=200\n"
    )


def test_a_proxys_path_may_be_cut_off_or_not(server: Server) -> None:
    for path in ("/llm/v1/models", "/v1/models"):
        assert server.get(path, **bearer(ADMIN)).is_success
    assert server.get("/llm/health/ready").is_success
    assert server.get("/openapi.json", **bearer(ADMIN)).json()["servers"] == [{"url": "/llm"}]


def test_a_proxy_has_more_connections_than_a_client() -> None:
    def connection(address: str) -> Any:
        return type("Connection", (), {"address": address, "waiting": False})()

    connections = Connections(most=9, of_client=2, proxies=("10.0.0.0/8",))
    assert all(connections.admit(connection("10.1.2.3")) for _ in range(5))
    assert [connections.admit(connection("9.9.9.9")) for _ in range(3)] == [True, True, False]


# ---- life cycle --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_answers_that_outlast_the_drain_end_as_documented(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cutaway.serve")
    with serving.running(serving.model(), drain_seconds=0.5) as server:
        answers: dict[str, Any] = {}

        def ask() -> None:
            answers["whole"] = server.post("/v1/completions", LONG)

        def stream() -> None:
            going = serving.httpx.stream(
                "POST", server.url + "/v1/completions", json=LONG | {"stream": True}, timeout=30
            )
            with going as response:
                answers["lines"] = [line for line in response.iter_lines() if line]

        threads = [threading.Thread(target=work) for work in (ask, stream)]
        for one in threads:
            one.start()
        wait_until(lambda: server.service.decoder.stats().running >= 2, "both requests run")
        assert server.get("/health/ready").status_code == 200
        server.server.handle_exit(signal.SIGTERM, None)
        server.server._captured_signals.clear()  # which uvicorn raises again at the end
        for one in threads:
            one.join(20)
    assert code(answers["whole"]) == (503, "cancelled") and "retry-after" in answers["whole"].headers
    last = json.loads(answers["lines"][-1].removeprefix("data: "))
    assert last["error"]["code"] == "cancelled" and len(answers["lines"]) > 2
    assert not [record for record in caplog.records if record.exc_info]
    shown = [record.getMessage() for record in caplog.records]
    assert "SIGTERM: the drain begins" in shown and "Stopped: 2 answers were cut off" in shown
    counted = [record.fields for record in caplog.records if record.getMessage() == "request"]
    assert sum(one.get("generated", 0) for one in counted) == server.service.decoder.stats().generated_tokens


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # httpx's, where a connection fails
def test_what_was_accepted_is_answered_after_the_socket_has_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    parse, begun, free = routes.parse_body, threading.Event(), threading.Event()

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert free.wait(20)
        return parse(*arguments)

    def is_closed() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(server.url.rpartition(":")[2]))) != 0

    answers: list[Any] = []
    with serving.running(serving.model()) as server:
        assert "connection" not in server.get("/v1/models").headers
        monkeypatch.setattr(routes, "parse_body", slow)
        body = {"prompt": "x", "max_tokens": 3, "ignore_eos": True}
        asking = threading.Thread(target=lambda: answers.append(server.post("/v1/completions", body)))
        asking.start()
        assert begun.wait(20)
        server.server.handle_exit(signal.SIGTERM, None)
        server.server._captured_signals.clear()  # which uvicorn raises again at the end
        wait_until(is_closed, "the socket closes")
        free.set()
        asking.join(20)
    assert answers[0].status_code == 200 and answers[0].json()["usage"]["completion_tokens"] == 3
    assert answers[0].headers["connection"] == "close"


def test_ready_turns_false_before_the_socket_closes(server: Server) -> None:
    server.server.models.stopping.set()
    try:
        for path in ("/health", "/health/ready"):
            answer = server.get(path)
            assert answer.status_code == 503 and answer.headers["connection"] == "close"
        assert server.get("/health/live").is_success and server.get("/v1/models", **bearer(ADMIN)).is_success
    finally:
        server.server.models.stopping.clear()


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # httpx's, where a connection fails
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
def test_signals_a_full_standard_error_and_a_stop(tmp_path: Path) -> None:
    """A process of its own, on a Unix socket, whose standard error takes nothing."""
    file, uds = tmp_path / "keys", tmp_path / "socket"
    file.write_text(ALICE)
    command = [sys.executable, "-m", "cutaway", "serve", str(inputs.path("smollm2")), "--uds", str(uds)]
    command += ["--api-key-file", str(file), "--stop-delay", "1"]
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(str(tmp_path / "notify"))
    environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(command, stderr=full, stdin=subprocess.DEVNULL, env=environment)
    transport = serving.httpx.HTTPTransport(uds=str(uds))
    try:
        with serving.httpx.Client(transport=transport, base_url="http://localhost", timeout=30) as client:

            def models(key: str) -> int:
                return client.get("/v1/models", **bearer(key)).status_code

            ends = time.monotonic() + 60
            while True:
                assert process.poll() is None and time.monotonic() < ends
                try:
                    assert models(ALICE) == 200
                    break
                except serving.httpx.TransportError:
                    time.sleep(0.1)
            assert systemd.recv(100) == b"READY=1"
            file.write_text("short")
            process.send_signal(signal.SIGHUP)
            assert models(ALICE) == 200
            file.write_text(BOB)
            for one in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
                process.send_signal(one)
            wait_until(lambda: process.poll() is not None or models(BOB) == 200, "the new key is read")
            assert models(ALICE) == 401
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: client.get("/health/ready").status_code != 200, "the server is not ready")
            assert models(BOB) == 200  # for --stop-delay
            assert process.wait(20) == -signal.SIGTERM and not uds.exists()
            assert systemd.recv(100) == b"STOPPING=1"
    finally:
        systemd.close()
        process.kill()
        process.wait()


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # httpx's, where a connection fails
def test_over_tls_a_json_log_is_json_from_the_first_line_to_the_last(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    command = [sys.executable, "-m", "cutaway", "serve", str(inputs.path("smollm2")), "--log-format", "json"]
    command += ["--port", "0", "--ssl-certfile", str(cert), "--ssl-keyfile", str(key)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    assert process.stderr is not None

    def asked(url: str) -> int | None:
        trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusted.load_verify_locations(cert)
        with contextlib.suppress(serving.httpx.TransportError):
            return serving.httpx.get(f"{url}/v1/models", verify=trusted, timeout=30).status_code
        return None

    try:
        first = json.loads(process.stderr.readline())
        url = first["message"].rpartition(" on ")[2]
        assert url.startswith("https://127.0.0.1:") and first["level"] == "info"
        wait_until(lambda: asked(url) == 200, "the server answers over TLS")
        certificate(tmp_path)  # renewed
        assert asked(url) is None
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: asked(url) == 200, "the new certificate is read")
        process.send_signal(signal.SIGTERM)
        rest = [json.loads(line) for line in process.stderr]
        assert process.wait(20) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    shown = [one["message"] for one in rest]
    assert {"request", "SIGTERM: the drain begins", "Stopped: 0 answers were cut off"} <= set(shown)
    command = [sys.executable, "-m", "cutaway", "serve", str(tmp_path / "none.gguf"), "--log-format", "json"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    (line,) = failed.stderr.splitlines()
    assert failed.returncode == 2 and json.loads(line)["level"] == "error" and "none.gguf" in line


# ---- several models ----------------------------------------------------------------------------------------


def test_models_are_loaded_when_asked_for_and_unloaded_by_last_use() -> None:
    began: dict[str, Service] = {}
    gone: dict[str, list[weakref.ref[Any]]] = {}

    def another(name: str) -> Model:
        def load() -> Service:
            lm, first = serving.model(1), began["first"]
            scheduler = first.limits.scheduler(lm.engine, lm.tokenizer)
            more: dict[str, Any] = {"bridge": first.bridge, "aliases": (f"{name}-*",)}
            made = Service(lm, name, scheduler, first.limits, first.metrics, **more)
            warm_up(made)
            gone[name] = [weakref.ref(made), weakref.ref(lm.tokenizer)]
            return made

        return Model(name, load, (f"{name}-*",), nbytes=10)

    policy = AccessPolicy(hosts=None, keys=KeyRing((ADMIN,)))
    others = [another("b"), another("c")]
    with serving.running(serving.model(), policy, others=others, max_memory=15) as server:
        began["first"] = server.service

        def ask(model: str, **more: Any) -> Any:
            body = {"prompt": "Once upon", "max_tokens": 4, "temperature": 0, "model": model} | more
            return server.post("/v1/completions", body, **bearer(ADMIN))

        def states() -> list[str]:
            found = server.get("/v1/admin/models", **bearer(ADMIN)).json()["data"]
            return [f"{one['id']} {one['state']} {one['loads']}" for one in found]

        assert [one["id"] for one in server.get("/v1/models", **bearer(ADMIN)).json()["data"]] == [
            serving.NAME,
            "b",
            "c",
        ]
        texts = {ask(name).json()["choices"][0]["text"] for name in ("b", "b-x", serving.NAME)}
        assert len(texts) == 2 and states()[1:] == ["b loaded 1", "c unloaded 0"]
        tags, running = (server.get(f"/api/{path}", **bearer(ADMIN)).json() for path in ("tags", "ps"))
        assert (len(tags["models"]), len(running["models"])) == (3, 2)
        assert ask("c").is_success and states()[1:] == ["b unloaded 1", "c loaded 1"]
        assert [one() for one in gone["b"]] == [None, None]  # nothing holds what was unloaded
        long = LONG | {"model": "c", "stream": True}
        url = server.url + "/v1/completions"
        with serving.httpx.stream("POST", url, json=long, timeout=30, **bearer(ADMIN)) as going:
            lines = going.iter_lines()
            next(lines)
            assert code(ask("b")) == (503, "no_room")
            asked = server.post("/v1/admin/models/unload", {"model": "c"}, **bearer(ADMIN))
            assert code(asked) == (409, "in_use")
        while "c loaded" in states()[2]:
            time.sleep(0.01)
            server.post("/v1/admin/models/unload", {"model": "c"}, **bearer(ADMIN))
        loaded = server.post("/v1/admin/models/load", {"model": "b"}, **bearer(ADMIN)).json()
        assert (loaded["state"], loaded["loads"]) == ("loaded", 2)
        asked = server.post("/v1/admin/models/unload", {"model": serving.NAME}, **bearer(ADMIN))
        assert code(asked) == (409, "in_use")  # the first stays
        assert code(ask("d")) == (404, "model_not_found") and "'c'" in ask("d").text
        assert code(server.post("/v1/admin/models/load", {"model": "b"})) == (401, "invalid_api_key")


# ---- logs and metrics --------------------------------------------------------------------------------------


def test_a_request_is_one_line_without_its_text(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "cutaway.serve"):
        sent = bearer(ADMIN)["headers"] | {"X-Request-Id": "abc-1"}
        assert server.get("/v1/models", headers=sent).headers["x-request-id"] == "abc-1"
        forged = bearer(ADMIN)["headers"] | {"X-Request-Id": "a b\tc"}
        assert re.fullmatch("[0-9a-f]{32}", server.get("/v1/models", headers=forged).headers["x-request-id"])
        secret = {"prompt": "a secret", "max_tokens": 2, "ignore_eos": True}
        wrong = server.post(
            "/v1/completions", secret, headers=bearer("wrong")["headers"] | {"X-Request-Id": "e"}
        )
        assert wrong.headers["x-request-id"] == "e"
        answer = server.post("/v1/completions", secret, **bearer(CAROL)).json()
        assert server.post("/v1/completions", secret | {"n": "secret"}, **bearer(CAROL)).status_code == 400
        server.get("/health")
        ends = time.monotonic() + 60
        while len(caplog.records) < 6 and time.monotonic() < ends:
            time.sleep(0.01)
    fields = [record.fields for record in caplog.records]
    assert [one["status"] for one in fields] == [200, 200, 401, 200, 400, 200] and fields[0]["key"] == "admin"
    assert fields[2]["error"] == "invalid_api_key" and fields[0]["id"] == "abc-1"
    assert {one["client"] for one in fields} == {"127.0.0.1"}
    assert "is wrong" in wrong.text and re.fullmatch("[0-9a-f]{8}", fields[2]["bad_key"])
    assert fields[2]["bad_key"] == fingerprint("wrong") != fingerprint("other")
    assert fingerprint("12345678, and more") == fingerprint("12345678, or less")
    assert [record.levelname for record in caplog.records] == ["INFO"] * 5 + ["DEBUG"]  # of /health
    used, line = answer["usage"], fields[3]
    assert (line["prompt"], line["generated"]) == (used["prompt_tokens"], 2) and line["key"] == "carol"
    assert line["model"] == serving.NAME and 0 <= line["queue"] < line["first_token"] < line["total"]
    written = [bounded_log._Formatter().format(record) for record in caplog.records]
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z (info|debug) request id=", line) for line in written)
    found = json.loads(bounded_log._Json().format(caplog.records[0]))
    assert found["path"] == "/v1/models" and found["message"] == "request"
    text = "".join(written)
    assert not any(one in text for one in ("secret", ADMIN, CAROL, "wrong", answer["choices"][0]["text"]))


def test_responses_tell_what_is_left_of_quotas(server: Server, keys: KeyRing) -> None:
    bob = next(one for one in keys.tenants if one.name == "bob")
    bob.requests.level = 0.0
    bob.tokens.limit, bob.tokens.level = 6000, 0.0
    bob.spend(100, 0, 49)
    try:
        shown = server.get("/v1/models", **bearer(BOB)).headers
        found = {name: shown[f"x-ratelimit-{name}"] for name in ("limit-requests", "remaining-requests")}
        assert found == {"limit-requests": "2", "remaining-requests": "1"}
        assert shown["x-ratelimit-limit-tokens"] == "6000" and shown["x-ratelimit-reset-requests"] == "30s"
        assert 5851 <= int(shown["x-ratelimit-remaining-tokens"]) <= 5900
        assert re.fullmatch(r"\ds|\d{3}ms", shown["x-ratelimit-reset-tokens"]) and "request-id" not in shown
        refused = server.post("/v1/messages", {"max_tokens": 0}, **bearer(BOB))
        shown = refused.headers
        assert refused.status_code == 400 and shown["request-id"] == shown["x-request-id"]
        assert shown["anthropic-ratelimit-requests-limit"] == "2" and "x-ratelimit-limit-tokens" not in shown
        assert shown["anthropic-ratelimit-requests-remaining"] == "0"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]+Z", shown["anthropic-ratelimit-tokens-reset"])
        assert int(server.get("/v1/models", **bearer(BOB)).headers["retry-after"]) >= 1
    finally:
        bob.requests.level, bob.tokens.limit = 0.0, None
    assert not [name for name in server.get("/v1/models", **bearer(ADMIN)).headers if "ratelimit" in name]


def test_anthropics_clients_list_models_in_their_form(server: Server) -> None:
    anthropic = pytest.importorskip("anthropic")
    client = anthropic.Anthropic(base_url=server.url, api_key=ADMIN, max_retries=0)
    page = client.models.list()
    assert [one.id for one in page] == [serving.NAME] and page.data[0].created_at.year > 2020
    assert client.models.retrieve(serving.NAME).display_name == serving.NAME
    assert client.models.list(after_id=serving.NAME).data == []
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.models.retrieve("none")
    assert missing.value.body["error"]["type"] == "not_found_error" and missing.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="limit"):
        client.models.list(limit=0)


def test_metrics_are_named_as_prometheus_asks(server: Server) -> None:
    text = server.get("/metrics", **bearer(ADMIN)).text
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)", text, re.M))
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in kinds.items()), kinds
    for name in ("time_to_first_token", "queue", "time_per_output_token", "request_duration"):
        buckets = re.findall(rf'^cutaway_{name}_seconds_bucket{{.*le="([\d.]+)"', text, re.M)
        assert len(set(buckets)) >= 18, name
    assert {"process_resident_memory_bytes", "process_open_fds"} <= set(kinds)
    if shutil.which("promtool"):
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_the_table_of_metrics_names_those_that_there_are(server: Server) -> None:
    page = (DEPLOY.parent / "docs" / "operations.md").read_text()
    text = server.get("/metrics", **bearer(ADMIN)).text
    known = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    named = set(re.findall(r"`[^`\n]*?\b(cutaway_[a-z_]+)", page)) | set(
        re.findall(r"/ (cutaway_[a-z_]+)`", page)
    )
    assert len(named) > 20 and named <= known, named - known
    undocumented = {name for name in known if name.startswith("cutaway_") and not name.endswith("_created")}
    assert undocumented - named <= {"cutaway_ignored_fields_total", "cutaway_kv_cache_page_bytes"} | {
        f"cutaway_key_{name}_total" for name in ("cached_tokens", "refused")
    }


def queries() -> list[str]:
    """The dashboard's queries, with Grafana's variables replaced."""
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return [one.replace("$__rate_interval", "1m").replace("$model", ".*") for one in found]


def alerts() -> list[str]:
    """The expressions of the alert rules."""
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return [rule["expr"] for group in groups for rule in group["rules"]]


def test_dashboard_and_alerts_ask_for_metrics_and_labels_that_there_are(server: Server) -> None:
    server.post("/v1/completions", {"prompt": "x"}, **bearer("wrong"))
    assert server.post("/v1/completions", TWO, **bearer(CAROL)).is_success
    server.service.metrics.loads.labels("another").inc()
    text = server.get("/metrics", **bearer(ADMIN)).text
    assert len(queries()) > 20 and len(alerts()) > 8
    for query in (*queries(), *(one.replace('{job="cutaway"}', "") for one in alerts())):
        for name, selected in re.findall(r"\b((?:cutaway|process)_\w+)({[^}]*})?", query):
            labels = {*re.findall(r"(\w+)=~", selected), *re.findall(r"\w+", " ".join(BY.findall(query)))}
            labels -= {"instance", "job"}  # which Prometheus adds
            lines = re.findall(rf"^{name}(?:{{(.*)}})? ", text, re.M)
            assert lines and all(f'{label}="' in lines[0] for label in labels), (name, labels)


@pytest.mark.skipif(not shutil.which("prometheus"), reason="prometheus is not installed")
def test_prometheus_answers_every_query_of_the_dashboard(server: Server, tmp_path: Path) -> None:
    assert server.post("/v1/completions", TWO, **bearer(CAROL)).is_success
    target = server.url.removeprefix("http://")
    job = {
        "job_name": "cutaway",
        "static_configs": [{"targets": [target]}],
        "authorization": {"credentials": ADMIN},
    }
    config = {"global": {"scrape_interval": "500ms", "scrape_timeout": "400ms"}, "scrape_configs": [job]}
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
    ]
    process = subprocess.Popen([*command, f"--web.listen-address={address}"], stderr=subprocess.DEVNULL)
    try:
        unanswered, ends = set(queries()), time.monotonic() + 30
        while unanswered and time.monotonic() < ends:
            time.sleep(0.5)
            with contextlib.suppress(serving.httpx.TransportError):
                for query in list(unanswered):
                    found = serving.httpx.get(
                        f"http://{address}/api/v1/query", params={"query": query}
                    ).json()
                    if found["status"] == "success" and found["data"]["result"]:
                        unanswered.remove(query)
        assert not unanswered
    finally:
        process.terminate()
        process.wait(20)


def test_a_request_is_one_span_with_its_phases() -> None:
    export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = export.InMemorySpanExporter()
    tracing = Tracing("", exporter)
    with serving.running(serving.model(), tracing=tracing) as server:
        trace = "0af7651916cd43dd8448eb211c80319c"
        sent = {"headers": {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "X-Request-Id": "abc"}}
        assert server.post("/v1/completions", {"prompt": "a secret", "max_tokens": 3}, **sent).is_success
        assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 0}).status_code == 400
        server.get("/health")
        ends = time.monotonic() + 60
        while len(exporter.get_finished_spans()) < 6 and time.monotonic() < ends:
            time.sleep(0.01)
            tracing.provider.force_flush()
    *phases, whole, refused = exporter.get_finished_spans()
    assert [one.name for one in phases] == ["prepare", "queue", "prefill", "decode"]
    assert whole.name == "POST /v1/completions" and f"{whole.context.trace_id:032x}" == trace
    times = [whole.start_time, *(time for one in phases for time in (one.start_time, one.end_time))]
    assert times == sorted(times) and times[-1] == whole.end_time and phases[0].start_time == times[0]
    assert all(one.parent.span_id == whole.context.span_id for one in phases)
    assert whole.attributes["gen_ai.usage.output_tokens"] == 3 and "secret" not in str(whole.attributes)
    assert refused.attributes["http.response.status_code"] == 400 and "cutaway.key" in refused.attributes
