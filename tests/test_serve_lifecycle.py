"""What an operator's server does without a client: sockets, systemd, reloads, quotas, which model goes."""

import asyncio
import logging
import os
import shutil
import signal
import socket
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sse_starlette.sse import AppStatus

import cutaway
from cutaway.commands import serve, serve_options
from cutaway.commands.serve_options import Listening, ModelLimits, Operation, Several
from cutaway.errors import OperationalError, UserError
from tests import inputs
from tests.serving import certificate, uvicorn

from cutaway.serve.operations import api_keys, bounded_log, lifecycle  # isort: skip
from cutaway.serve.operations.api_keys import Bucket, KeyRing  # isort: skip
from cutaway.serve.operations.metrics import Metrics  # isort: skip
from cutaway.serve.operations.models import Model, Models  # isort: skip
from cutaway.serve.api_error import APIError  # isort: skip
from cutaway.serve.response_store import Entry, ResponseStore  # isort: skip
from cutaway.serve.service import Limits  # isort: skip
from cutaway.serve.service import Service, adapter_engine  # isort: skip

OLD, NEW = "the-old-key-of-alice", "the-new-key-of-alice"


def load() -> Any:
    """A service without a model."""
    parts: dict[str, Any] = {"limits": Limits(), "scheduler": None, "adapters": {}, "metrics": Metrics()}
    return SimpleNamespace(stop=lambda seconds: 0, **parts)


# ---- sockets and systemd -----------------------------------------------------------------------------------


def test_a_port_can_be_shared_where_both_ask_for_it() -> None:
    with lifecycle.bound("127.0.0.1", 0, reuse_port=True) as first:
        port = first.getsockname()[1]
        first.listen()
        with lifecycle.bound("127.0.0.1", port, reuse_port=True) as second:
            assert second.getsockname()[1] == port
        with pytest.raises(OperationalError, match=rf"Cannot listen on 127.0.0.1, port {port}"):
            lifecycle.bound("127.0.0.1", port)


def test_a_unix_socket_of_a_server_that_ended_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    lifecycle.bound("", 0, path).close()
    with lifecycle.bound("", 0, path) as used:
        used.listen()
        assert path.stat().st_mode & 0o777 == 0o660
        with pytest.raises(OperationalError, match=r"Cannot listen on .*socket"):
            lifecycle.bound("", 0, path)
    file = tmp_path / "file"
    file.write_text("not a socket")
    with pytest.raises(OperationalError):
        lifecycle.bound("", 0, file)
    assert file.read_text() == "not a socket"


def test_systemds_socket_is_taken_where_it_is_meant_for_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as passed:
        passed.bind(("127.0.0.1", 0))
        port = passed.getsockname()[1]
        monkeypatch.setattr(lifecycle, "SYSTEMD_FIRST", os.dup(passed.fileno()))
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        with lifecycle.bound("127.0.0.1", 0) as made:
            assert made.getsockname()[1] == port
        monkeypatch.setenv("LISTEN_PID", "1")
        with lifecycle.bound("127.0.0.1", 0) as made:
            assert made.getsockname()[1] != port


def test_systemd_is_notified_where_it_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    lifecycle.notify("READY=1")
    for address, shown in ((f"{tmp_path}/notify", f"{tmp_path}/notify"), ("\0cutaway", "@cutaway")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(address)
            monkeypatch.setenv("NOTIFY_SOCKET", shown)
            lifecycle.notify("READY=1")
            assert systemd.recv(100) == b"READY=1"


# ---- signals -----------------------------------------------------------------------------------------------


def test_the_first_sigterm_waits_for_the_balancer_and_the_second_does_not() -> None:
    models = Models([Model("first", load)])
    server = lifecycle.Server(uvicorn.Config("app"), models, delay=60.0)
    server.handle_exit(signal.SIGTERM, None)
    assert models.stopping.is_set() and not server.should_exit
    assert not asyncio.run(server.on_tick(1))
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit and not server.force_exit
    at_once = lifecycle.Server(uvicorn.Config("app"), models, delay=60.0)
    at_once.handle_exit(signal.SIGINT, None)
    assert at_once.should_exit
    assert not AppStatus.should_exit  # which would end all streams, though their answers are under way


def test_a_reload_reads_keys_and_log_level_and_a_wrong_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys, config = tmp_path / "keys", tmp_path / "serve.yaml"
    keys.write_text(OLD)
    config.write_text("port: 1\n")
    ring, operation = KeyRing((), keys), Operation(log_level="warning")
    again = partial(serve.reload, ring, config, operation)
    server = lifecycle.Server(uvicorn.Config("app"), Models([Model("first", load)]), reload=again)
    log = logging.getLogger("cutaway.serve")
    before = log.level
    try:
        keys.write_text(NEW)
        server._reload()
        assert ring.find(NEW) and not ring.find(OLD) and log.level == logging.WARNING
        config.write_text("log-level: debug\n")
        server._reload()
        assert log.level == logging.DEBUG
        for wrong_keys, wrong_config, why in (("short", "", "8 or more"), (OLD, "log-level: loud", "loud")):
            keys.write_text(wrong_keys)
            config.write_text(wrong_config)
            server._reload()
            assert ring.find(NEW) and not ring.find(OLD) and log.level == logging.DEBUG
            assert "Nothing was reloaded" in caplog.text and why in caplog.text
        config.unlink()
        server._reload()
        assert "serve.yaml" in caplog.text and ring.find(NEW)
        assert NEW not in caplog.text and OLD not in caplog.text
    finally:
        bounded_log.set_level("info")
        log.setLevel(before)


# ---- quotas and models -------------------------------------------------------------------------------------


def test_a_quota_flows_out_in_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(api_keys, "time", clock)
    bucket = Bucket(60)
    assert bucket.wait(60) == 0.0 and bucket.wait(61) == 1.0
    bucket.level = 60.0
    assert bucket.wait(1) == 1.0
    clock.now += 30.0
    assert bucket.wait(30) == 0.0 and bucket.wait(31) == 1.0
    clock.now += 1000.0
    assert bucket.wait(60) == 0.0 and bucket.wait(61) == 1.0  # a long pause saves up one minute, not more
    assert Bucket(None).wait(10**9) == 0.0


def test_the_model_goes_that_was_not_used_for_the_longest_time() -> None:
    others = [Model(name, load, nbytes=10, pinned=name == "pinned") for name in ("pinned", "b", "c", "d")]
    models = Models([Model("first", load), *others], max_memory=30)

    async def ask(name: str) -> list[str]:
        model, _ = await models.use(name)
        models.leave(model)
        return [one.name for one in models.models if one.service is not None]

    async def run() -> None:
        for name in ("pinned", "b", "c", "b"):
            await ask(name)
        assert await ask("d") == ["first", "pinned", "b", "d"]
        used, _ = await models.use("b")
        assert await ask("c") == ["first", "pinned", "b", "c"]  # b was used before d, and is in use
        used_too, _ = await models.use("c")
        with pytest.raises(APIError) as refused:
            await models.use("d")
        assert refused.value.code == "no_room"
        models.leave(used)
        models.leave(used_too)
        with pytest.raises(APIError) as refused:
            await models.unload("pinned")
        assert refused.value.code == "in_use"

    asyncio.run(run())


def test_an_adapter_takes_no_models_name() -> None:
    first = load()
    loaded: list[str] = []
    first.load_adapter = lambda name, path: loaded.append(name)
    models = Models([Model("first", lambda: first, ("gpt-4o", "claude-*")), Model("b", load, ("c", "d-?"))])
    taken = ("first", "gpt-4o", "claude-3", "b", "c", "d-1", "b:latest", "first:latest", "claude-3:latest")
    for name in (*taken, "two\nlines", "a b", "", ".hidden", "a\0", "é", "a,b", "x" * 300 + "\n"):
        with pytest.raises(APIError) as refused:
            models.load_adapter(name, "folder")
        assert refused.value.status == 400 and refused.value.param == "lora_name"
    for name in ("e", "B", "d-12", "org/name:v1", "e"):
        models.load_adapter(name, "folder")
    assert loaded == ["e", "B", "d-12", "org/name:v1", "e"]


def test_an_adapter_by_name_beside_the_definition_is_refused_for_that() -> None:
    lm = cutaway.load(inputs.path("smollm2"), engine="pytorch")
    with pytest.raises(
        UserError, match=r"only the runtime serves adapters .* because it was asked for: give"
    ):
        adapter_engine(lm, "folder")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("adapter", "smollm2=folder"),
        ("adapter", "gpt-4o=folder"),
        ("adapter", "claude-3=folder"),
        ("adapter", "minilm:latest=folder"),
        ("alias", "minilm"),
        ("alias", "smollm2=minilm"),
        ("alias", "gpt-4o=minilm"),
    ],
)
def test_no_option_takes_a_models_name(option: str, value: str) -> None:
    given: dict[str, Any] = {"alias": ("gpt-4o", "claude-*")}
    loading = serve_options.Loading(**given | {option: (*given.get(option, ()), value)})
    with pytest.raises(UserError, match=rf"--{option} {value}"):
        serve.Loader(("smollm2", "minilm"), loading, Several(), Limits()).models()


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "two\nlines"])
def test_an_adapters_path_that_no_path_can_be_is_refused(path: str, tmp_path: Path) -> None:
    service: Any = SimpleNamespace(adapter_folder=tmp_path)
    with pytest.raises(APIError, match="not printable") as refused:
        Service.load_adapter(service, "a", path)
    assert refused.value.status == 400 and refused.value.param == "lora_path"


def test_what_cannot_be_saved_ends_no_server(caplog: pytest.LogCaptureFixture) -> None:
    def save() -> None:
        raise OSError("the disk is full")

    server = lifecycle.Server(uvicorn.Config("app"), Models([Model("first", load)]), save=save)
    assert not asyncio.run(server.on_tick(lifecycle.SAVE_TICKS - 1))
    assert "could not be saved: the disk is full" in caplog.text


def test_what_keys_used_outlives_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now, time=lambda: 5e9 + clock.now)
    monkeypatch.setattr(api_keys, "time", clock)
    file, path = tmp_path / "keys.yaml", tmp_path / "store"
    text = f"keys: [{{name: alice, key: {OLD}, requests_per_minute: 60, tokens_per_minute: 600}}]"
    file.write_text(text)
    ring = KeyRing((), file)
    (alice,) = ring.tenants
    for _ in range(60):
        alice.admit(True)()
    alice.spend(100, 7, 500)
    ResponseStore(path).save_usage(ring)
    clock.now += 10.0  # of which 10 requests and 100 tokens flow out
    again = KeyRing((), file)
    ResponseStore(path).load_usage(again)
    (alice,) = again.tenants
    assert alice.used == {"requests": 60, "prompt_tokens": 100, "cached_tokens": 7, "generated_tokens": 500}
    assert (alice.requests.wait(11), alice.tokens.wait(101)) == (1.0, 0.1)
    file.write_text(text.replace("alice", "bob"))
    later = KeyRing((), file)
    ResponseStore(path).load_usage(later)
    file.write_text(text)
    later.load()  # and one that comes back into the file has what it used before
    assert later.tenants[0].used["requests"] == 60


def test_what_is_stored_is_its_users_alone(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.touch(0o644)  # an earlier version's
    for _ in range(2):
        store = ResponseStore(path)
        store.put(b"", {"a": Entry("item", {"text": "secret"})})
        assert {one.stat().st_mode & 0o777 for one in tmp_path.iterdir()} == {0o600}
        path = tmp_path / "another"
    broken = tmp_path / "broken"
    broken.write_text("not a database " * 100)
    for wrong in (tmp_path, tmp_path / "none" / "store", broken):
        with pytest.raises(OperationalError, match=r"--store .* cannot be used"):
            ResponseStore(wrong)


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_a_certificate_is_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    serve_options.check(Listening(ssl_certfile=cert, ssl_keyfile=key))
    other = tmp_path / "other"
    other.mkdir()
    locked = certificate(other, "-passout", "pass:secret")
    wrong = [(None, key), (cert, None), (key, cert), (tmp_path / "none", key), (cert, locked[1]), locked]
    for certfile, keyfile in wrong:
        with pytest.raises(UserError, match=r"--ssl-certfile|PEM|encrypted"):
            serve_options.check(Listening(ssl_certfile=certfile, ssl_keyfile=keyfile))


def test_memory_is_booked_as_it_is_used() -> None:
    path, encoder = inputs.path("smollm2"), inputs.path("minilm")
    name = Path(path).stem

    def loader(memory: str, *limit: str) -> serve.Loader:
        several = Several(max_memory=memory, limit=limit)
        return serve.Loader((str(path), str(encoder)), serve_options.Loading(), several, Limits())

    small = (f"{name}.context=256", f"{name}.max-sequences=2")
    weights = loader("64GiB", *small)._nbytes(name, path) - 512 * 23040
    assert loader("4GiB")._nbytes(name, path) == weights + (1 << 30)  # a quarter, of which less is no bound
    assert loader("64GiB")._nbytes(name, path) == weights + 16 * 8192 * 23040  # what 16 longest answers take
    many = loader("8GiB")._nbytes("minilm", encoder)
    assert many == loader("1GiB")._nbytes("minilm", encoder) < 100 << 20  # an encoder has no KV cache
    with pytest.raises(UserError, match="less than"):
        loader("90MB")._nbytes("minilm", encoder)
    models = loader("64GiB", *small).models()
    service = models.default
    try:
        figures = service.decoder.stats()
        assert figures.pages_total * figures.page_bytes == 512 * 23040
        assert models.status(models.models[0])["bytes"] == models.models[0].nbytes == service.nbytes
        _ = service.lm.pytorch  # whose float32 weights are beside the packed ones from now on
        assert models.models[0].booked > 4 * weights
    finally:
        service.decoder.close()


def test_sizes_and_limits_of_models() -> None:
    sizes = {"8GiB": 8 << 30, "500MB": 500_000_000, "1.5 KiB": 1536, "7": 7, "2tb": 2 * 10**12}
    for text, wanted in sizes.items():
        assert Several(max_memory=text).bytes == wanted
    for wrong in ("8GX", "-1GiB", "much"):
        with pytest.raises(UserError, match="--max-memory"):
            _ = Several(max_memory=wrong).bytes
    found = Several(limit=("a.b.context=512", "a.b.max-tokens=5", "c.max-sequences=2")).limits
    assert found == {"a.b": ModelLimits(context=512, max_tokens=5), "c": ModelLimits(max_sequences=2)}
    for wrong in ("a=1", "a.context=0", "a.context=x", "a.drain=1"):
        with pytest.raises(UserError, match="--limit"):
            _ = Several(limit=(wrong,)).limits


def test_a_models_own_limits_hold() -> None:
    path = str(inputs.path("smollm2"))
    name = Path(path).stem
    several = Several(limit=(f"{name}.context=512", f"{name}.max-tokens=5", f"{name}.max-sequences=2"))
    loading = serve_options.Loading(alias=("claude-*",))
    models = serve.Loader((path,), loading, several, Limits()).models()
    service = models.default
    try:
        own = service.limits
        assert (service.context, own.max_tokens, own.max_sequences) == (512, 5, 2)
        assert models.find("claude-3").name == models.find(f"{name}:latest").name == name
    finally:
        service.decoder.close()
    for wrong in (Several(pin=("other",)), Several(limit=("other.context=9",))):
        with pytest.raises(UserError, match="other"):
            serve.Loader((path,), loading, wrong, Limits()).models()
